"""Equal parts of many configurations, kept once: the runs of a sweep have almost everything in common."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from harness.core.config.run_config import RunConfig

T = TypeVar("T")


class Interner:
    """What was seen so far, by how it is written."""

    def __init__(self) -> None:
        self._known: dict[str, Any] = {}

    def of(self, value: T) -> T:
        """The first value that was equal to this one, which nobody may alter."""
        known: T = self._known.setdefault(repr(value), value)
        return known

    def parts(self, sections: Mapping[str, Any]) -> dict[str, Any]:
        """A mapping whose values are shared."""
        return {key: self.of(value) for key, value in sections.items()}

    def config(self, config: RunConfig) -> RunConfig:
        """A configuration whose sections are shared."""
        names = [field.name for field in dataclasses.fields(config)]
        return dataclasses.replace(config, **{name: self.of(getattr(config, name)) for name in names})
