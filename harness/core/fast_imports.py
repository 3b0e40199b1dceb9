"""Import large packages faster, without changing what the program can use.

Two costs are avoidable. Python's garbage collector scans all live objects again and again while modules
accumulate: a fifth of the import time, though hardly any of it is garbage. And packages import optional
dependencies that only some of their users need, merely because they are installed.
"""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def fast_import(without: tuple[str, ...] = ()) -> Iterator[None]:
    """Disable the garbage collector for the imports in the body, and hide the packages in `without`.

    A hidden package counts as not installed, unless it was imported before. After the block it can be
    imported as usual.
    """
    modules: dict[str, Any] = sys.modules
    hidden = [name for name in without if name not in modules]
    was_enabled = gc.isenabled()
    gc.disable()
    modules.update(dict.fromkeys(hidden))  # None: an import of it raises ModuleNotFoundError
    try:
        yield
    finally:
        for name in hidden:
            del modules[name]
        if was_enabled:
            gc.enable()
