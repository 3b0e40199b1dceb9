"""Plain Keras, trained by one call of `fit` for all epochs, on any backend.

A callback at the beginning of an epoch waits for the turn and measures the time; batches have no callback.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from tests.bench.networks_keras import network, parameters
from tests.bench.turns import Turns

BATCH = 32


class _Turn(keras.callbacks.Callback):  # type: ignore[misc]
    """A turn lasts from the start of an epoch to the start of the next, so it includes what `fit` does
    between epochs."""

    def __init__(self, turns: Turns) -> None:
        super().__init__()
        self.turns = turns
        self.loss: float | None = None

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if self.loss is not None:
            self.turns.stop()
            self.turns.done(self.loss)
        self.turns.wait()
        self.turns.start()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.loss = float(logs["loss"])


def idiomatic(name: str, x: np.ndarray, y: np.ndarray, turns: Turns) -> None:
    """Compile and fit with the defaults. Rows that do not fill a batch are left out, as in all loops here."""
    model = network(name, x.shape[1:])
    turns.parameters = parameters(model)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=keras.optimizers.Adam(1e-3), loss=loss)
    rows = len(x) // BATCH * BATCH
    model.fit(x[:rows], y[:rows], batch_size=BATCH, epochs=1_000_000, verbose=0, callbacks=[_Turn(turns)])


def arrays(path: str) -> tuple[np.ndarray, np.ndarray]:
    """The training rows, float32 `[rows, height, width]`, and their classes, int32."""
    data = np.load(path)
    return data["x.train"].astype(np.float32), data["y.train"].astype(np.int32)


def order(rows: int) -> np.ndarray:
    """An epoch's batches, int32 `[steps, BATCH]`."""
    return np.random.permutation(rows)[: rows // BATCH * BATCH].reshape(-1, BATCH).astype(np.int32)
