"""Split the parameters of a test into a core, which `make test` runs, and the rest, for `make test-all`
only."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def matrix(values: Iterable[Any], core: Callable[[Any], bool], several: bool = False) -> list[Any]:
    """Parameters of a test or a fixture; those for which `core` is false are marked `exhaustive`.

    `several`: each value is a tuple of values for several arguments of the test.
    """
    return [value if core(value) else _exhaustive(value, several) for value in values]


def _exhaustive(value: Any, several: bool) -> Any:
    return pytest.param(*(value if several else (value,)), marks=pytest.mark.exhaustive)
