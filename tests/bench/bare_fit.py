"""The FNN in plain Keras, trained by one call of `fit` for all epochs, on any backend.

A callback at the ends of an epoch waits for the turn and takes the time; there is none at the batches.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from tests.bench.turns import Turns

BATCH = 32


def network() -> keras.Model:
    """The model, drawn by Keras' own initialisers."""
    return keras.Sequential(
        [
            keras.Input((8, 8)),
            keras.layers.Flatten(),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dense(32, activation="relu"),
            keras.layers.Dense(10),
        ]
    )


class _Turn(keras.callbacks.Callback):  # type: ignore[misc]
    def __init__(self, turns: Turns) -> None:
        super().__init__()
        self.turns = turns

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.turns.wait()
        self.turns.start()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.turns.stop()
        self.turns.done(float(logs["loss"]))


def idiomatic(x: np.ndarray, y: np.ndarray, turns: Turns) -> None:
    """Compile and fit, with the defaults. Rows that don't fill a batch are left out, as everywhere here."""
    model = network()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=keras.optimizers.Adam(1e-3), loss=loss)
    rows = len(x) // BATCH * BATCH
    model.fit(x[:rows], y[:rows], batch_size=BATCH, epochs=1_000_000, verbose=0, callbacks=[_Turn(turns)])


def arrays(path: str) -> tuple[np.ndarray, np.ndarray]:
    """The training rows, float32 `[rows, 8, 8]`, and their classes, int32."""
    data = np.load(path)
    return data["x.train"].astype(np.float32), data["y.train"].astype(np.int32)


def order(rows: int) -> np.ndarray:
    """An epoch's batches, int32 `[steps, BATCH]`."""
    return np.random.permutation(rows)[: rows // BATCH * BATCH].reshape(-1, BATCH).astype(np.int32)
