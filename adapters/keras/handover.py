"""One call of `fit` for a whole run, held up before each epoch until the harness asks for it.

The harness trains epoch by epoch, and `fit` wants all epochs in one call, as its users write it. A call an
epoch would be measured with what `fit` sets up each time: iterators, callbacks, a pool of threads on JAX. So
`fit` runs on a thread of its own. Only one of the two threads ever runs: the other one waits for it, at a
queue, which wakes it in two thirds of the time that a semaphore takes (to and fro 100 µs, for 140).
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping
from typing import Any

import keras

EPOCHS = 10**9
"""What `fit` is told: more than any run has. It ends when its run does."""


class _StopFitError(Exception):
    """Raised inside of `fit` to end it."""


class Handover(keras.callbacks.Callback):  # type: ignore[misc]
    """A call of `fit` that is made with this callback, by `fit(callback)` on another thread.

    Returns when `fit` is ready for its first epoch; raises what it raised.
    """

    def __init__(self, fit: Callable[[keras.callbacks.Callback], object]) -> None:
        super().__init__()
        self._fit = fit
        self._goes_on: queue.SimpleQueue[bool] = queue.SimpleQueue()  # to `fit`: one more epoch, or the end
        self._ended: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()  # from it: an epoch, or itself
        self._loss = float("nan")
        self._thread = threading.Thread(target=self._run, name="fit", daemon=True)
        self._thread.start()
        self._wait()

    def train_epoch(self) -> float:
        """Let `fit` train one epoch; returns its mean loss."""
        self._goes_on.put(True)
        self._wait()
        return self._loss

    def stop(self) -> None:
        """End `fit`; harmless where it has ended."""
        self._goes_on.put(False)
        self._thread.join()

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Give back, and wait for the next epoch."""
        self._ended.put(None)
        if not self._goes_on.get():
            raise _StopFitError

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Keep the loss, which Keras has read from the device by now: all steps are done."""
        assert logs is not None
        self._loss = float(logs["loss"])

    def _run(self) -> None:
        try:
            self._fit(self)
            raise RuntimeError(f"`fit` ended by itself, before {EPOCHS} epochs")
        except _StopFitError:
            return
        except Exception as error:
            self._ended.put(error)

    def _wait(self) -> None:
        if (error := self._ended.get()) is not None:
            raise error
