"""What the contract suites share: every framework with each of its executions."""

from __future__ import annotations

from tests.support.adapter_process import frameworks
from tests.support.tasks import shared

EXECUTIONS = ("idiomatic", "eager", "compiled", "epoch")
PAIRS = [(name, execution) for name, config in frameworks().items() for execution in config.executions]
ADAM = shared("adam")
COMPILES_LEAST = {"keras": "compiled", "keras_jax": "compiled"}
CORE = {(name, COMPILES_LEAST.get(name, config.execution)) for name, config in frameworks().items()}
"""One execution of each framework, its default unless another one compiles faster: `make test` runs the other
ones in a few tests only."""
