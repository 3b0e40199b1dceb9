"""Layer trees, read once for all runs of a sweep that share them."""

from __future__ import annotations

from harness.core.network import ModelSpec

MAX_SPECS = 64  # layer trees, and networks made of them, that are kept for the next run
_specs: dict[str, ModelSpec] = {}


def read_spec(layers: object) -> ModelSpec:
    """A layer tree, read once for all runs of a sweep that have the same; raises ConfigError."""
    text = repr(layers)
    if text not in _specs:
        if len(_specs) >= MAX_SPECS:
            del _specs[next(iter(_specs))]
        _specs[text] = ModelSpec.parse(layers)
    return _specs[text]
