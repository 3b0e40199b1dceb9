"""Interning of configurations: the runs of a sweep have most sections in common, which are stored once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from harness.core.config.run_config import RunConfig

T = TypeVar("T")


class Interner:
    """Returns one object for all equal values, which are compared by `repr` and must not be mutated."""

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}

    def intern(self, value: T) -> T:
        """The first value that was equal to this one."""
        interned: T = self._values.setdefault(repr(value), value)
        return interned

    def intern_values(self, sections: Mapping[str, Any]) -> dict[str, Any]:
        """The mapping with interned values."""
        return {key: self.intern(value) for key, value in sections.items()}

    def intern_config(self, config: RunConfig) -> RunConfig:
        """The configuration with interned sections."""
        names = [field.name for field in dataclasses.fields(config)]
        return dataclasses.replace(config, **{name: self.intern(getattr(config, name)) for name in names})
