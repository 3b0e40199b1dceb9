"""Write files so that readers and kills never see a partial one.

A file is written next to its target under a unique temporary name, then renamed. A kill therefore leaves the
old file or the new one, and at most a temporary file that no reader mistakes for either.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to, and rename it to `path` at the end of the block.

    If the block raises, `path` stays as it was.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_half_written(path: Path) -> None:
    """Remove the temporary files that killed writers of `path` left, and a database's files next to those.

    No other process may be writing `path` at the same time.
    """
    for half_written in path.parent.glob(f".{path.name}.*.tmp*"):
        half_written.unlink()
