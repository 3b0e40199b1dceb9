"""Flatten a nested configuration into dotted keys.

MLflow stores parameters as a flat map of strings, and tables name the settings in which runs differ. Both use
the keys of the command line, such as `optimizer.learning_rate`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested mappings as dotted keys, e.g. `optimizer.learning_rate`; lists become JSON."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{name}."))
        elif isinstance(value, list | tuple):
            flat[name] = json.dumps(value, default=str)
        else:
            flat[name] = str(value)
    return flat
