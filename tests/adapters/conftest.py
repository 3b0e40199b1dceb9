"""Fixtures of the contract suites."""

from __future__ import annotations

import pytest

from tests.adapters.contract import CORE, PAIRS
from tests.support.adapter_process import AdapterProcess, Adapters
from tests.support.matrix import matrix


@pytest.fixture(params=matrix(PAIRS, CORE.__contains__), ids="-".join)
def adapter_and_execution(request: pytest.FixtureRequest, adapters: Adapters) -> tuple[AdapterProcess, str]:
    """A process of each framework in float64, with each of its executions on a CPU."""
    framework, execution = request.param
    return adapters(framework, "float64"), execution
