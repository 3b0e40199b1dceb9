"""Named arrays on disk (npz), replaced atomically: a kill leaves the old file or the new one.

Nothing is pickled, so that a weights file from an untrusted source cannot run code.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.core.storage.atomic import atomic_write


def save(path: Path, arrays: Mapping[str, NDArray[Any]], durable: bool = False) -> None:
    """Write `arrays` to `path` (npz, not compressed), atomically.

    With `durable`, wait until the data is on disk, so that even a power loss leaves the old file or the new.
    """
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
        if durable:
            file.flush()
            os.fsync(file.fileno())


def load(path: Path) -> dict[str, NDArray[Any]]:
    """Read what `save` wrote, with the names in the order in which they were saved."""
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}
