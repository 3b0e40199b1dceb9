"""The idiomatic execution: `model.compile` and `model.fit`, with the defaults that a user has.

One call of `fit` an epoch, because the harness makes the order of an epoch; no callback a batch, since that
turns an asynchronous loop into one that waits at every step. Backends add what they count and how they wait.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import keras
import numpy as np
import numpy.typing as npt

from adapters.keras import losses
from adapters.keras.program import Array, Inputs, Parts, native


class Pipeline(Protocol):
    """What `fit` reads instead of arrays, made once for a run: building it anew for each epoch costs time."""

    def feed(self, inputs: Inputs, y: Array) -> None:
        """Take the rows of the training part."""
        ...

    def epoch(self, order: npt.NDArray[np.int32]) -> Any:
        """What to give `fit` for an epoch in this order."""
        ...


class Fit:
    """A loop that calls `fit`; see `adapters.keras.program.Loop`.

    predict: raw outputs of a chunk. restart: called with the seed when a run starts. sync: waits for the
    device. compilations: the backend's count. pipeline: what `fit` reads; without one, arrays.
    """

    def __init__(
        self,
        parts: Parts,
        predict: Callable[[Inputs], Array],
        restart: Callable[[int], None],
        sync: Callable[[], None],
        compilations: Callable[[], int],
        pipeline: Pipeline | None = None,
    ) -> None:
        self._parts = parts
        self._model = parts.model.keras
        self._model.compile(optimizer=parts.optimizer.keras, loss=losses.native(parts.plan.loss))
        self._inputs: Inputs = ()
        self._y: Array = np.empty(0)
        self._loss = np.nan
        self.predict = predict
        self.restart = restart
        self.sync = sync
        self.compilations = compilations
        self._pipeline = pipeline

    def feed(self, inputs: Inputs, y: Array) -> None:
        """Keep the rows as NumPy arrays, which is what `fit` is given in tutorials, or in the pipeline."""
        self._inputs, self._y = inputs, y
        if self._pipeline is not None:
            self._pipeline.feed(inputs, y)

    def train_epoch(self, order: npt.NDArray[np.int32], learning_rates: npt.NDArray[np.float64]) -> None:
        """Fit one epoch on the rows in the harness's order."""
        self._parts.optimizer.set_rates(learning_rates)
        if self._pipeline is not None:
            history = self._model.fit(self._pipeline.epoch(order), epochs=1, verbose=0)
        else:
            rows = order.ravel()
            x = native(tuple(each[rows] for each in self._inputs))
            size = order.shape[1]
            history = self._model.fit(x, self._y[rows], batch_size=size, epochs=1, shuffle=False, verbose=0)
        self._loss = history.history["loss"][0]

    def losses(self) -> Array:
        """The mean loss of the epoch, `[1]`."""
        return np.array([self._loss])

    def read(self, variables: Sequence[Any]) -> list[Array]:
        """The values of variables."""
        return [keras.ops.convert_to_numpy(variable) for variable in variables]
