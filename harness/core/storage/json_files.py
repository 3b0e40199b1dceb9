"""JSON files, replaced whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from harness.core.storage import atomic


def write_json(path: Path, value: object) -> None:
    """Write JSON under a temporary name, then rename. NaN and infinity are kept as Python writes them."""
    with atomic.replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1), encoding="utf-8")


def read_json(path: Path) -> dict[str, Any] | None:
    """Read a JSON object, or None where there is no file."""
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return value
