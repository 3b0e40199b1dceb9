"""The space of a search: a mapping from keys of the configuration to ranges or choices.

Choices are stored as command-line text (`[64,32]`, `relu`, `null`), so that a trial is a list of overrides
like any other and the best one can be repeated by hand. Nothing here needs Optuna, which is slow to import.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

SPAN_KEYS = frozenset({"low", "high", "log", "step"})
LEAF_KEYS = SPAN_KEYS | {"choices"}


@dataclass(frozen=True)
class Span:
    """Numbers from `low` to `high`, both included; integers if both are. `log`: sampled on a logarithmic
    scale. `step`: the distance between neighbouring values."""

    low: int | float
    high: int | float
    log: bool = False
    step: int | float | None = None

    @property
    def whole(self) -> bool:
        """Whether all values are integers."""
        return all(isinstance(bound, int) for bound in (self.low, self.high, self.step or 1))

    def values(self) -> list[int | float]:
        """List all values; raises ValueError for a span without steps."""
        step = self.step or (1 if self.whole and not self.log else None)
        if step is None:
            raise ValueError("no steps")
        low, high, width = (Decimal(repr(bound)) for bound in (self.low, self.high, step))
        numbers = [low + i * width for i in range(int((high - low) / width) + 1)]
        return [int(number) if self.whole else float(number) for number in numbers]


@dataclass(frozen=True)
class Choice:
    """Values as command-line text."""

    texts: tuple[str, ...]


Dimension = Span | Choice


def flatten_space(space: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten a space to dotted keys, so that `search.space.train.batch_size.low=8` on the command line
    changes the file's `train.batch_size`. Keys whose value is null are left out."""
    flat: dict[str, Any] = {}
    for name, value in space.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and not LEAF_KEYS & set(value):
            for inner, item in flatten_space(value, f"{key}.").items():
                flat[inner] = _merge(flat.get(inner), item)
        else:
            flat[key] = _merge(flat.get(key), value)
    return flat if prefix else {key: value for key, value in flat.items() if value is not None}


def _merge(first: object, second: object) -> object:
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        return {**first, **second}
    return second


def override_text(value: object) -> str:
    """Format a value for the command line; a string is used as it is."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{override_text(item)}" for key, item in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ",".join(map(override_text, value)) + "]"
    return value if isinstance(value, str) else repr(value)


def override_texts(params: Mapping[str, Any]) -> dict[str, str]:
    """Format the parameters of a trial for the command line."""
    return {key: override_text(value) for key, value in params.items()}
