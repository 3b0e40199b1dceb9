"""Counts the compilations of XLA for a program, by the events that JAX reports for the whole process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax.monitoring

from adapters.keras.parts import Array, Inputs, Loop
from harness.core.adapter import Epoch


class CountedLoop:
    """A loop that counts the compilations of XLA while one of its methods runs."""

    total = 0

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._count = 0
        self._counting = False

    @contextmanager
    def _counted(self) -> Iterator[None]:
        if self._counting:  # between two epochs the harness calls `predict` and `read` inside `train`
            yield
            return
        self._counting, before = True, CountedLoop.total
        try:
            yield
        finally:
            self._counting = False
            self._count += CountedLoop.total - before

    def feed(self, inputs: Inputs, y: Array) -> None:
        with self._counted():
            self._loop.feed(inputs, y)

    def restart(self, seed: int) -> None:
        with self._counted():
            self._loop.restart(seed)

    def train(self, epochs: Iterable[Epoch]) -> None:
        with self._counted():
            self._loop.train(epochs)

    def losses(self) -> Array:
        return self._loop.losses()

    def predict(self, inputs: Inputs) -> Array:
        with self._counted():
            return self._loop.predict(inputs)

    def read(self, variables: Sequence[Any]) -> list[Array]:
        return self._loop.read(variables)

    def sync(self) -> None:
        self._loop.sync()

    def compilations(self) -> int:
        return self._count


def _count(event: str, duration_secs: float, **_: str | int) -> None:
    if event == "/jax/core/compile/backend_compile_duration":
        CountedLoop.total += 1


jax.monitoring.register_event_duration_secs_listener(_count)
