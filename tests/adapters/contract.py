"""What the contract suites share: every framework with each of its executions."""

from __future__ import annotations

from tests.support.adapter_process import frameworks
from tests.support.tasks import shared

EXECUTIONS = ("idiomatic", "eager", "compiled", "epoch")
PAIRS = [(name, execution) for name, config in frameworks().items() for execution in config.executions]
ADAM = shared("adam")
CORE = {("torch", "eager"), ("keras", "compiled"), ("keras_jax", "compiled"), ("keras_torch", "eager")}
"""One execution of each framework: `make test` runs the other ones in a few tests only."""
