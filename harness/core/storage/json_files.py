"""Read and write the JSON files of a results folder.

Writers replace a file as a whole (`harness.core.storage.atomic`), so a reader in another process always sees
complete JSON.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from harness.core.storage import atomic


def write_json(path: Path, value: object) -> None:
    """Write `value` as JSON, atomically. NaN and infinity are written as Python spells them."""
    with atomic.atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1), encoding="utf-8")


def read_json(path: Path) -> dict[str, Any] | None:
    """Read a JSON object; None if the file is missing."""
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return value
