"""Epochs that are handed to a trainer, and that all of them were trained."""

from __future__ import annotations

import inspect
from collections.abc import Generator

from harness.core.adapter import Epoch, Trainer

Epochs = Generator[Epoch, None, None]
"""Yields an epoch, and goes on when it has been trained: what follows a `yield` comes after that epoch."""


def train_all(trainer: Trainer, epochs: Epochs) -> None:
    """Train all epochs; raises RuntimeError if the trainer did not come to their end."""
    trainer.train(epochs)
    if inspect.getgeneratorstate(epochs) != inspect.GEN_CLOSED:
        raise RuntimeError("the adapter stopped before it had trained all epochs")
