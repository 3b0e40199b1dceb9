"""Which trials of a search are ended early, so that it does not matter in what order their epochs come in.

Optuna's pruners look at all trials of a study, those beside them included, and write down in it how far each
one came. Trials of a batch go on together, so each is judged in a study of its own: the trials that ended
before its batch began, and itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import optuna
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.samplers import RandomSampler
from optuna.trial import FrozenTrial

from harness.shell.search.space import SearchConfig


def pruner_of(config: SearchConfig, epochs: int) -> BasePruner:
    """Optuna's pruner for runs of so many epochs."""
    match config.pruner:
        case "median":
            return MedianPruner()
        case "hyperband":
            return HyperbandPruner(max_resource=epochs)
        case "none":
            return NopPruner()


class BatchPruner:
    """Judges the trials of one batch, of which `before` are those that ended earlier. One call at a time."""

    def __init__(self, name: str, config: SearchConfig, epochs: int, before: Sequence[FrozenTrial]) -> None:
        self._name, self._config, self._epochs, self._before = name, config, epochs, before
        self._trials: dict[int, optuna.Trial] = {}

    def judge(self, number: int, epoch: int, value: float) -> bool:
        """Whether the trial is to go on after an epoch with this value of the objective."""
        if math.isnan(value):
            return True  # diverges, which the run says itself
        if number not in self._trials:
            self._trials[number] = self._seated(number)
        self._trials[number].report(value, epoch)
        return not self._trials[number].should_prune()

    def _seated(self, number: int) -> optuna.Trial:
        """The trial in a study of its own, under its number, by which Hyperband deals out its brackets."""
        study = optuna.create_study(
            direction=next(iter(self._config.objectives.values())),
            sampler=RandomSampler(),
            pruner=pruner_of(self._config, self._epochs),
            study_name=self._name,
        )
        study.add_trials(self._before)
        for _ in range(number - len(self._before)):
            study.ask()  # those beside it, of which nothing is known
        return study.ask()


def report(trial: optuna.Trial, values: Mapping[int, float], prunes: bool) -> None:
    """Give a trial that has ended its values after each epoch, and the notes that a pruner makes of them."""
    for epoch in sorted(values):
        trial.report(values[epoch], epoch)
        if prunes:
            trial.should_prune()
