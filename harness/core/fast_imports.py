"""Imports of large packages in less time, with nothing missing that we use.

Two things make them slow that need not. Python's garbage collector goes through all that is there again and
again while modules pile up, a fifth of the time, though hardly any of it is garbage. And packages import what
only some of their users need, where it happens to be installed.
"""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def quick(without: tuple[str, ...] = ()) -> Iterator[None]:
    """Import in the body of this; `without` are packages to take as not installed, where nobody has imported
    them yet. They can be imported afterwards."""
    modules: dict[str, Any] = sys.modules
    kept_out = [name for name in without if name not in modules]
    collecting = gc.isenabled()
    gc.disable()
    modules.update(dict.fromkeys(kept_out))  # None: an import of it raises ModuleNotFoundError
    try:
        yield
    finally:
        for name in kept_out:
            del modules[name]
        if collecting:
            gc.enable()
