"""The idiomatic execution: `model.compile` and `model.fit`, with the defaults that a user has.

One call of `fit` a run (see `handover`); no callback a batch, since that turns an asynchronous loop into one
that waits at every step. Backends add what they count, how they wait, and what `fit` reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import keras
import numpy as np
import numpy.typing as npt

from adapters.keras import losses
from adapters.keras.handover import EPOCHS, Handover
from adapters.keras.program import Array, Inputs, Parts, native


class Source(Protocol):
    """What `fit` reads its rows from, in an order that is another one in each epoch."""

    def feed(self, inputs: Inputs, y: Array) -> None:
        """Take the rows of a run's training part."""
        ...

    def order(self, order: npt.NDArray[np.int32]) -> None:
        """Take the order of the epoch that comes next, `[steps, batch]`."""
        ...

    def arguments(self) -> Mapping[str, Any]:
        """What tells `fit` to read from here."""
        ...


class Arrays:
    """Two NumPy arrays, x and y, which is what `fit` is given in tutorials: filled anew before each epoch."""

    def __init__(self, steps: int, batch_size: int) -> None:
        self._batch_size = batch_size
        self._rows = steps * batch_size
        self._given: tuple[Array, ...] = ()
        self._filled: tuple[Array, ...] = ()

    def feed(self, inputs: Inputs, y: Array) -> None:
        """See `Source`."""
        self._given = (*inputs, y)
        self._filled = tuple(np.zeros((self._rows, *each.shape[1:]), each.dtype) for each in self._given)

    def order(self, order: npt.NDArray[np.int32]) -> None:
        """See `Source`."""
        rows = order.ravel()
        for given, filled in zip(self._given, self._filled, strict=True):
            given.take(rows, axis=0, out=filled, mode="clip")  # other modes copy once more

    def arguments(self) -> Mapping[str, Any]:
        """See `Source`."""
        *inputs, y = self._filled
        return {"x": native(tuple(inputs)), "y": y, "batch_size": self._batch_size, "shuffle": False}


class Fit:
    """A loop that calls `fit`; see `adapters.keras.program.Loop`.

    predict: raw outputs of a chunk. seed: called with the seed when a run starts. sync: waits for the
    device. compilations: the backend's count. source: what `fit` reads.
    """

    def __init__(
        self,
        parts: Parts,
        predict: Callable[[Inputs], Array],
        seed: Callable[[int], None],
        sync: Callable[[], None],
        compilations: Callable[[], int],
        source: Source,
    ) -> None:
        self._parts = parts
        self._model = parts.model.keras
        self._model.compile(optimizer=parts.optimizer.keras, loss=losses.native(parts.plan.loss))
        self._loss = np.nan
        self._fit: Handover | None = None
        self.predict = predict
        self._seed = seed
        self.sync = sync
        self.compilations = compilations
        self._source = source

    def feed(self, inputs: Inputs, y: Array) -> None:
        """Put the rows where `fit` reads them."""
        self._stop()
        self._source.feed(inputs, y)

    def restart(self, seed: int) -> None:
        """Begin a `fit`, up to its first epoch."""
        self._stop()
        self._seed(seed)
        reading = self._source.arguments()
        self._fit = Handover(
            lambda callback: self._model.fit(**reading, epochs=EPOCHS, verbose=0, callbacks=[callback])
        )

    def train_epoch(self, order: npt.NDArray[np.int32], learning_rates: npt.NDArray[np.float64]) -> None:
        """Fit one epoch on the rows in the harness's order."""
        assert self._fit is not None, "train_epoch comes after load"
        self._parts.optimizer.set_rates(learning_rates)
        self._source.order(order)
        self._loss = self._fit.train_epoch()

    def losses(self) -> Array:
        """The mean loss of the epoch, `[1]`."""
        return np.array([self._loss])

    def read(self, variables: Sequence[Any]) -> list[Array]:
        """The values of variables."""
        return [keras.ops.convert_to_numpy(variable) for variable in variables]

    def _stop(self) -> None:
        if self._fit is not None:
            self._fit.stop()
            self._fit = None
