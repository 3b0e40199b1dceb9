"""A cache of parsed layer trees.

The runs of a sweep share a few models. Each distinct tree is parsed once per process and reused
for all runs that contain it.
"""

from __future__ import annotations

from harness.core.network import ModelSpec

MAX_SPECS = 64  # size of the caches of layer trees and of the networks resolved from them
_specs: dict[str, ModelSpec] = {}


def read_spec(layers: object) -> ModelSpec:
    """Parse a layer tree, or return it from the cache; raises ConfigError."""
    text = repr(layers)
    if text not in _specs:
        if len(_specs) >= MAX_SPECS:
            del _specs[next(iter(_specs))]
        _specs[text] = ModelSpec.parse(layers)
    return _specs[text]
