"""What a training works on: its data, its program and trainer, and the weights that it starts from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.core.adapter import Plan, Program, Trainer, Weights
from harness.core.config.run_config import RunConfig
from harness.core.data.dataset import Dataset
from harness.core.training import metrics, schedules
from harness.core.training.batches import batch_order
from harness.core.training.training_state import State


@dataclass(frozen=True)
class TrainingSetup:
    """A run that is ready to train: `epochs_before` epochs are done already (warm start or checkpoint)."""

    config: RunConfig
    dataset: Dataset
    plan: Plan
    program: Program
    trainer: Trainer
    weights: Weights
    state: State | None
    epochs_before: int

    def order(self, epoch: int) -> NDArray[np.int32]:
        """The rows of an epoch's batches, int32 `[steps, batch]`."""
        return batch_order(self.config.seed, epoch, self.plan.rows[0], self.plan.batch_size)

    def learning_rates(self) -> NDArray[Any]:
        """The learning rates of all epochs, `[epochs, steps]`."""
        rate, epochs = self.config.optimizer.learning_rate, self.config.train.epochs
        return schedules.learning_rates(self.config.schedule, rate, epochs, self.plan.steps)

    def evaluate(self, split: str) -> dict[str, float]:
        """The metrics on a split, `val` or `test`, with the split's name as prefix."""
        data = self.dataset
        outputs = self.trainer.predict("val" if split == "val" else "test")
        values = metrics.evaluate(
            data.task, self.plan.loss, outputs, data.y[split], data.target_mean, data.target_std
        )
        return {f"{split}/{name}": value for name, value in values.items()}

    def cause_of_divergence(self) -> str:
        """The probable cause of a loss that is not finite, with advice.

        Data far from unit scale are suspected before the learning rate.
        """
        data, config = self.dataset, self.config.data
        rate = self.config.optimizer.learning_rate
        largest = float(np.abs(data.x["train"]).max())
        if not config.standardise and largest > 10:
            return f"the inputs are not standardised and reach {largest:g}: try data.standardise=true"
        largest = float(np.abs(data.y["train"]).max())
        if data.task.kind == "regression" and not config.standardise_targets and largest > 10:
            return (
                f"the targets are not standardised and reach {largest:g}: try data.standardise_targets=true"
            )
        return f"the learning rate {rate:g} is probably too high: try optimizer.learning_rate={rate / 10:g}"
