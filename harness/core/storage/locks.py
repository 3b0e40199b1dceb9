"""Locks between processes: files that the operating system unlocks when their holder dies, in any way."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from harness.core.validation import ConfigError, Mistake


@contextlib.contextmanager
def held(path: Path, wait: bool = True) -> Iterator[None]:
    """Hold the lock on `path`, a file that is made if it is missing, after whoever holds it now.

    With `wait=False` raises BlockingIOError where someone holds it.
    """
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        try:
            yield
        finally:
            # closing is not enough: a process that was forked meanwhile shares the open file
            fcntl.flock(file, fcntl.LOCK_UN)


@contextlib.contextmanager
def held_alone(path: Path, otherwise: Mistake) -> Iterator[None]:
    """Hold the lock on `path`, which is made with its folder; raises ConfigError where someone holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(held(path, wait=False))
        except BlockingIOError:
            raise ConfigError([otherwise]) from None
        yield


def is_held(path: Path) -> bool:
    """Whether a living process holds a lock, even a shared one, on `path`; no file, no lock."""
    try:
        with path.open("r") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
