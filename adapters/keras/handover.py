"""One call of `fit` for a whole run, held up before each epoch until the harness asks for it.

The harness trains epoch by epoch, and `fit` wants all epochs in one call, as its users write it. A call an
epoch would be measured with what `fit` sets up each time: iterators, callbacks, a pool of threads on JAX. So
`fit` runs on a thread of its own. Only one of the two threads ever runs: the other one waits for it.
"""

from __future__ import annotations

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
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._stopped = False
        self._error: Exception | None = None
        self._loss = float("nan")
        self._thread = threading.Thread(target=self._run, name="fit", daemon=True)
        self._thread.start()
        self._wait()

    def train_epoch(self) -> float:
        """Let `fit` train one epoch; returns its mean loss."""
        self._go.release()
        self._wait()
        return self._loss

    def stop(self) -> None:
        """End `fit`; harmless where it has ended."""
        self._stopped = True
        self._go.release()
        self._thread.join()

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Give back, and wait for the next epoch."""
        self._back.release()
        self._go.acquire()
        if self._stopped:
            raise _StopFitError

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Keep the loss, which Keras has read from the device by now: all steps are done."""
        assert logs is not None
        self._loss = float(logs["loss"])

    def _run(self) -> None:
        try:
            self._fit(self)
        except _StopFitError:
            return
        except Exception as error:
            self._error = error
        self._back.release()

    def _wait(self) -> None:
        self._back.acquire()
        if self._error is not None:
            raise self._error
