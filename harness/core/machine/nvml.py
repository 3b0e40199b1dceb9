"""NVIDIA's management library, by its Python package nvidia-ml-py, where that and a driver are installed.

A worker reads its card's energy and memory with it, the shell what cards there are. It is imported by a name
that is no requirement, so without it everything else works as before.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any

MODULE = "pynvml"


def start() -> Any:
    """The library, initialised; None where it, or a driver for it, is not there. Whoever starts it and is
    done calls its `nvmlShutdown`."""
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
    """The library for the length of a block, or None."""
    nvml = start()
    try:
        yield nvml
    finally:
        if nvml is not None:
            nvml.nvmlShutdown()


def handle(nvml: Any, card: str) -> Any:
    """The handle of a card by its number or UUID; raises the library's NVMLError."""
    if card.isdigit():
        return nvml.nvmlDeviceGetHandleByIndex(int(card))
    return nvml.nvmlDeviceGetHandleByUUID(card)


def text(value: str | bytes) -> str:
    """A text of the library's, which older versions give as bytes."""
    return value.decode() if isinstance(value, bytes) else value
