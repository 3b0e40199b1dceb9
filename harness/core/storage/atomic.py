"""Files that others may read at any instant: replaced whole, or not at all.

A file is written beside its place under a name of its own, and renamed. So a kill leaves the old file or the
new one, and at most a half-written one that nobody takes for either.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """The temporary name to write under; what is there in the end takes the place of `path`.

    After an exception the file at `path` is what it was.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_half_written(path: Path) -> None:
    """Remove what kills left of attempts to replace `path`, and what a database keeps beside such a file.
    Nobody may be writing it meanwhile."""
    for half_written in path.parent.glob(f".{path.name}.*.tmp*"):
        half_written.unlink()
