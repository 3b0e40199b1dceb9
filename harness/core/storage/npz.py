"""Named arrays on disk, written so that a kill at any instant leaves the old file or the new one.

Nothing is pickled: a weights file from someone else must not be able to run code.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.core.storage.atomic import replacing


def save(path: Path, arrays: Mapping[str, NDArray[Any]], durable: bool = False) -> None:
    """Write `arrays` to `path` (npz, not compressed) under a temporary name, then rename.

    `durable`: wait until they are on the disk, so that even a loss of power leaves the old file or the new.
    """
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
        if durable:
            file.flush()
            os.fsync(file.fileno())


def load(path: Path) -> dict[str, NDArray[Any]]:
    """Read what `save` wrote, names in the order in which they were saved."""
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}
