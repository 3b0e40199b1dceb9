"""The program of every backend of Keras: a model with its optimizer, trained by the backend's loop."""

from __future__ import annotations

from collections.abc import Mapping

import keras

from adapters.keras import losses, optimizers
from adapters.keras.parts import DropoutRng, Loop, Parts
from adapters.keras.trainer import Trainer
from harness.core.adapter import Examples, Plan
from harness.core.training.optimizers import Rule


class Program:
    """A model with its loss and optimizer, trained by the loop of its execution."""

    def __init__(
        self,
        parts: Parts,
        loop: Loop,
        settings: Mapping[str, object],
        sparse: bool = False,
        dropout_rng: DropoutRng | None = None,
    ) -> None:
        """With `sparse`, the optimizer gets the gradients of embeddings as rows; see
        `optimizers.SPARSE_DEVIATION`."""
        self._parts = parts
        self._loop = loop
        self._sparse = sparse
        self._dropout_rng = dropout_rng
        self._settings = dict(settings)

    def trainer(self, examples: Examples, rule: Rule, seed: int) -> Trainer:
        """Start a run, see `harness.core.adapter.Program.trainer`."""
        return Trainer(self._parts, self._loop, self._dropout_rng, examples, rule, seed)

    def compilations(self) -> int:
        """The number of traces or compilations for this program."""
        return self._loop.compilations()

    def settings(self) -> dict[str, object]:
        """What runs: backend, optimizer and its known deviations from the rule, and the backend's
        settings."""
        rule = self._parts.plan.rule
        kernels = self._parts.model.recurrent
        return {
            "backend": keras.backend.backend(),
            "optimizer": self._parts.optimizer.name(),
            "deviations": optimizers.deviations(rule, self._sparse),
            "loss": _loss_name(self._parts.plan),
            **({"recurrent": " and ".join(kernels)} if kernels else {}),
            **self._parts.model.mixed_precision(),
            **self._settings,
        }


def _loss_name(plan: Plan) -> str:
    return type(losses.native(plan.loss)).__name__ if plan.execution == "idiomatic" else plan.loss
