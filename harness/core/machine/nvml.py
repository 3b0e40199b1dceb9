"""NVIDIA's management library (NVML), through its Python package nvidia-ml-py if installed.

A worker reads its card's energy and memory with it, the shell lists the cards. The package is optional:
without it, or without a driver, everything else works as usual.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any

MODULE = "pynvml"


def start() -> Any:
    """Initialise and return the library; None if it or its driver is not installed.

    The caller calls its `nvmlShutdown` when done.
    """
    try:
        nvml: Any = importlib.import_module(MODULE)
    except ImportError:
        return None
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return None
    return nvml


@contextlib.contextmanager
def library() -> Iterator[Any]:
    """Yield the initialised library, or None, and shut it down at the end of the block."""
    nvml = start()
    try:
        yield nvml
    finally:
        if nvml is not None:
            nvml.nvmlShutdown()


def handle(nvml: Any, card: str) -> Any:
    """Return the handle of a card by its number or UUID; raises the library's NVMLError."""
    if card.isdigit():
        return nvml.nvmlDeviceGetHandleByIndex(int(card))
    return nvml.nvmlDeviceGetHandleByUUID(card)


def text(value: str | bytes) -> str:
    """Decode a string of the library; older versions return bytes."""
    return value.decode() if isinstance(value, bytes) else value
