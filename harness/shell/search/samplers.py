"""Optuna's samplers and distributions for a search's configuration."""

from __future__ import annotations

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler, CmaEsSampler, GridSampler, NSGAIISampler, RandomSampler, TPESampler

from harness.shell.search.config import SearchConfig
from harness.shell.search.space import Dimension, Span


def distribution_of(dimension: Dimension) -> BaseDistribution:
    """Create Optuna's distribution of a dimension."""
    if not isinstance(dimension, Span):
        return CategoricalDistribution(dimension.texts)
    low, high, step = dimension.low, dimension.high, dimension.step
    if step is not None:
        high = dimension.values()[-1]  # the last value that the steps reach
    if dimension.whole:
        return IntDistribution(int(low), int(high), dimension.log, int(step or 1))
    return FloatDistribution(low, high, dimension.log, step)


def sampler_of(config: SearchConfig, seed: int) -> BaseSampler:
    """Create Optuna's sampler."""
    match config.sampler:
        case "grid":
            return _Grid(config.grid(), seed)
        case "random":
            return RandomSampler(seed)
        case "tpe":
            return TPESampler(seed=seed)
        case "cmaes":
            return CmaEsSampler(seed=seed, warn_independent_sampling=False)
        case "nsga2":
            return NSGAIISampler(seed=seed)


class _Grid(GridSampler):
    """Optuna's grid sampler without its call to `study.stop`, which fails outside of `study.optimize`."""

    def after_trial(self, *_: object) -> None:
        """Do nothing: the search knows its number of trials."""
