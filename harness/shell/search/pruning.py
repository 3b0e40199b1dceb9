"""Pruning: which trials of a search to end early, independent of the order in which their epochs arrive.

Optuna's pruners look at all trials of a study, including concurrent ones, and record each one's progress in
the study. The trials of a batch run concurrently, so each is checked in a study of its own: the trials that
ended before its batch began, and itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import optuna
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.samplers import RandomSampler
from optuna.trial import FrozenTrial

from harness.shell.search.config import SearchConfig


def pruner_of(config: SearchConfig, epochs: int) -> BasePruner:
    """Create Optuna's pruner for runs of `epochs` epochs."""
    match config.pruner:
        case "median":
            return MedianPruner()
        case "hyperband":
            return HyperbandPruner(max_resource=epochs)
        case "none":
            return NopPruner()


class BatchPruner:
    """Prunes the trials of one batch; `before` are the trials that ended earlier. Not thread-safe."""

    def __init__(self, name: str, config: SearchConfig, epochs: int, before: Sequence[FrozenTrial]) -> None:
        self._name, self._config, self._epochs, self._before = name, config, epochs, before
        self._trials: dict[int, optuna.Trial] = {}

    def should_continue(self, number: int, epoch: int, value: float) -> bool:
        """Whether the trial continues after an epoch with this value of the objective."""
        if math.isnan(value):
            return True  # diverged, which the run reports itself
        if number not in self._trials:
            self._trials[number] = self._isolated_trial(number)
        self._trials[number].report(value, epoch)
        return not self._trials[number].should_prune()

    def _isolated_trial(self, number: int) -> optuna.Trial:
        """Create the trial in a study of its own, with its number, by which Hyperband assigns brackets."""
        study = optuna.create_study(
            direction=next(iter(self._config.objectives.values())),
            sampler=RandomSampler(),
            pruner=pruner_of(self._config, self._epochs),
            study_name=self._name,
        )
        study.add_trials(self._before)
        for _ in range(number - len(self._before)):
            study.ask()  # the other trials of the batch, without any values
        return study.ask()


def record_epochs(trial: optuna.Trial, values: Mapping[int, float], prunes: bool) -> None:
    """Report a finished trial's value after each epoch to its study, with the pruner's own notes."""
    for epoch in sorted(values):
        trial.report(values[epoch], epoch)
        if prunes:
            trial.should_prune()
