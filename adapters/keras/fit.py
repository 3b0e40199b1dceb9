"""The idiomatic execution: `model.compile` and `model.fit` with their defaults.

One call of `fit` runs all epochs, as its users write it: one call per epoch would add the setup of `fit` to
every measurement (iterators, callbacks, a thread pool on JAX). A callback feeds the epochs into it; the
callback has no method for batches, because that would make an asynchronous loop wait at every step. Each
backend supplies its compilation count, its synchronisation and the data source of `fit`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import keras
import numpy as np
import numpy.typing as npt

from adapters.keras import losses
from adapters.keras.parts import Array, Inputs, Parts, native
from harness.core.adapter import Epoch

MAX_EPOCHS = 10**9
"""The `epochs` argument of `fit`, more than any run has; the callback stops `fit` after the last epoch."""


class Source(Protocol):
    """The data source of `fit`, in a new order each epoch."""

    def feed(self, inputs: Inputs, y: Array) -> None:
        """Set the training rows of a run."""
        ...

    def order(self, order: npt.NDArray[np.int32]) -> None:
        """Set the order of rows of the next epoch, `[steps, batch]`."""
        ...

    def arguments(self) -> Mapping[str, Any]:
        """The arguments that make `fit` read from this source."""
        ...


class ArraySource:
    """A source of NumPy arrays, x and y, as in the tutorials of `fit`; refilled before each epoch."""

    def __init__(self, steps: int, batch_size: int) -> None:
        self._batch_size = batch_size
        self._rows = steps * batch_size
        self._arrays: tuple[Array, ...] = ()
        self._shuffled: tuple[Array, ...] = ()

    def feed(self, inputs: Inputs, y: Array) -> None:
        """See `Source`."""
        self._arrays = (*inputs, y)
        self._shuffled = tuple(np.zeros((self._rows, *each.shape[1:]), each.dtype) for each in self._arrays)

    def order(self, order: npt.NDArray[np.int32]) -> None:
        """See `Source`."""
        rows = order.ravel()
        for array, shuffled in zip(self._arrays, self._shuffled, strict=True):
            array.take(rows, axis=0, out=shuffled, mode="clip")  # other modes make another copy

    def arguments(self) -> Mapping[str, Any]:
        """See `Source`."""
        *inputs, y = self._shuffled
        return {"x": native(tuple(inputs)), "y": y, "batch_size": self._batch_size, "shuffle": False}


class _NoEpochError(Exception):
    """Leaves a `fit` that has no epoch to train: `stop_training` has no effect before its first epoch."""


class _EpochFeed(keras.callbacks.Callback):  # type: ignore[misc]
    """Draws the next epoch from an iterator before each epoch of `fit`, and stops `fit` at its end.

    `record_loss` is called with the mean loss of each epoch after it.
    """

    def __init__(self, epochs: Iterator[object], record_loss: Callable[[float], None]) -> None:
        super().__init__()
        self._epochs = epochs
        self._record_loss = record_loss

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Draw the first epoch. The time of `fit` up to here belongs to no epoch."""
        if epoch == 0 and not self._draw_next():
            raise _NoEpochError

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Record the loss, which Keras has read from the device by now, and draw the next epoch. The time of
        `fit` between two epochs belongs to the later one."""
        assert logs is not None
        self._record_loss(float(logs["loss"]))
        if not self._draw_next():
            self.model.stop_training = True

    def _draw_next(self) -> bool:
        return next(self._epochs, None) is not None


class Fit:
    """A loop that calls `fit`; see `adapters.keras.parts.Loop`.

    `predict` returns the raw outputs of a chunk, `seed` is called with the seed at the start of a run, `sync`
    waits for the device, `compilations` is the backend's count, `source` the data that `fit` reads.
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
        self.predict = predict
        self._seed = seed
        self.sync = sync
        self.compilations = compilations
        self._source = source

    def feed(self, inputs: Inputs, y: Array) -> None:
        """Pass the rows to the source of `fit`."""
        self._source.feed(inputs, y)

    def restart(self, seed: int) -> None:
        """Seed the dropout masks; the rest of the state is in Keras' variables."""
        self._seed(seed)

    def train(self, epochs: Iterable[Epoch]) -> None:
        """Call `fit` once for all epochs, with the rows in the harness's order."""
        callback = _EpochFeed(self._prepared(epochs), self._set_loss)
        with contextlib.suppress(_NoEpochError):
            self._model.fit(**self._source.arguments(), epochs=MAX_EPOCHS, verbose=0, callbacks=[callback])

    def _prepared(self, epochs: Iterable[Epoch]) -> Iterator[Epoch]:
        """Pass the epochs on, and set the rates and the order of rows for each."""
        for epoch in epochs:
            self._parts.optimizer.set_rates(epoch.rates)
            self._source.order(epoch.order)
            yield epoch

    def _set_loss(self, loss: float) -> None:
        self._loss = loss

    def losses(self) -> Array:
        """The mean loss of the epoch, `[1]`."""
        return np.array([self._loss])

    def read(self, variables: Sequence[Any]) -> list[Array]:
        """The current values of variables."""
        return [keras.ops.convert_to_numpy(variable) for variable in variables]
