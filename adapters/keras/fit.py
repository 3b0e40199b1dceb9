"""The idiomatic execution: `model.compile` and `model.fit`, with the defaults that a user has.

One call of `fit` for all epochs, as its users write it: a call an epoch would be measured with what `fit`
sets up each time, iterators, callbacks, a pool of threads on JAX. A callback hands the epochs over from
within; it has no method for batches, since that turns an asynchronous loop into one that waits at every step.
Backends add what they count, how they wait, and what `fit` reads.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import keras
import numpy as np
import numpy.typing as npt

from adapters.keras import losses
from adapters.keras.program import Array, Inputs, Parts, native
from harness.core.adapter import Epoch

EPOCHS = 10**9
"""What `fit` is told to train: more than any run has. It is stopped when there are no more."""


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


class _NoEpochError(Exception):
    """Raised inside of a `fit` that has nothing to train: it can't be stopped before its first epoch else."""


class _HandingOver(keras.callbacks.Callback):  # type: ignore[misc]
    """Before each epoch of `fit` asks for what it trains, and stops it where there is nothing left.

    ended: called with the mean loss of an epoch after it.
    """

    def __init__(self, epochs: Iterator[object], ended: Callable[[float], None]) -> None:
        super().__init__()
        self._epochs = epochs
        self._ended = ended

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Take the first epoch: what `fit` did up to here belongs to none."""
        if epoch == 0 and not self._take_next():
            raise _NoEpochError

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Tell the loss, which Keras has read from the device by now, and take the next epoch: what `fit`
        does between two of them belongs to the later one."""
        assert logs is not None
        self._ended(float(logs["loss"]))
        if not self._take_next():
            self.model.stop_training = True

    def _take_next(self) -> bool:
        return next(self._epochs, None) is not None


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
        self.predict = predict
        self._seed = seed
        self.sync = sync
        self.compilations = compilations
        self._source = source

    def feed(self, inputs: Inputs, y: Array) -> None:
        """Put the rows where `fit` reads them."""
        self._source.feed(inputs, y)

    def restart(self, seed: int) -> None:
        """Set the stream of dropout masks; the rest of the state is in Keras' variables."""
        self._seed(seed)

    def train(self, epochs: Iterable[Epoch]) -> None:
        """Fit on the rows in the harness's order."""
        callback = _HandingOver(self._prepared(epochs), self._ended)
        with contextlib.suppress(_NoEpochError):
            self._model.fit(**self._source.arguments(), epochs=EPOCHS, verbose=0, callbacks=[callback])

    def _prepared(self, epochs: Iterable[Epoch]) -> Iterator[Epoch]:
        """The same epochs; rates and rows of each are where `fit` reads them."""
        for epoch in epochs:
            self._parts.optimizer.set_rates(epoch.rates)
            self._source.order(epoch.order)
            yield epoch

    def _ended(self, loss: float) -> None:
        self._loss = loss

    def losses(self) -> Array:
        """The mean loss of the epoch, `[1]`."""
        return np.array([self._loss])

    def read(self, variables: Sequence[Any]) -> list[Array]:
        """The values of variables."""
        return [keras.ops.convert_to_numpy(variable) for variable in variables]
