"""The plan of a search: what the command line and the configuration request, checked before the first trial.

The space's keys must exist, and every choice and both ends of every range are composed and checked like a
run's configuration. A combination of values may still be impossible (a width that the number of heads does
not divide): that shows when it is sampled, and becomes a failed trial.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.types import IntervalSweep, Override
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness.core.config.flatten import flatten
from harness.core.config.identity import NOT_IN_IDENTITY
from harness.core.config.run_config import RunConfig
from harness.core.data import dataset
from harness.core.validation import ConfigError, Mistake
from harness.shell.engines.protocol import Engine
from harness.shell.search.config import TIMES, SearchConfig, read_search
from harness.shell.search.space import Choice, Dimension, flatten_space, override_text
from harness.shell.search.trial_composer import SECTION, TrialComposer

REPLACED = (f"{SECTION}.objectives", f"{SECTION}.space")  # not merged if set as a whole
FREE = (SECTION, "hydra", "framework.python", *NOT_IN_IDENTITY)
"""Keys that may differ when a search resumes."""


@dataclass(frozen=True)
class SweepOverrides:
    """The overrides of the command line, and of an experiment's `hydra.sweeper.params`: `fixed` overrides by
    key, the overrides of each swept key (`axes`), ranges of the space (`spans`), and parts of the section
    that are set as a whole (`replaced`)."""

    fixed: Mapping[str, str]
    axes: Mapping[str, tuple[str, ...]]
    spans: Mapping[str, Any]
    replaced: Mapping[str, Any]

    @property
    def runs_per_trial(self) -> list[tuple[str, ...]]:
        """The overrides of each run of a trial."""
        return [(*self.fixed.values(), *values) for values in itertools.product(*self.axes.values())]


@dataclass(frozen=True)
class SearchPlan:
    """A search that can start. `base` is one of its runs, `epochs` the largest number of epochs of a run,
    `definition` what must be the same when the search resumes, `fixed_keys` the keys of the space that the
    command line sets."""

    config: SearchConfig
    base: RunConfig
    epochs: int
    definition: Mapping[str, Any]
    overrides: SweepOverrides
    fixed_keys: tuple[str, ...]


def plan_search(
    composed: DictConfig,
    arguments: Sequence[str],
    composer: TrialComposer,
    mistakes: Sequence[Mistake],
    engine: Engine | None,
) -> SearchPlan:
    """Read and check a search; raises ConfigError with `mistakes` (of the caller) and all others.

    `composed` is what Hydra composed for the sweep, `arguments` are its overrides.
    """
    mistakes = list(mistakes)
    overrides = _sweep_overrides(composer.parse([*_sweeper_params(composed), *arguments]), mistakes)
    section, fixed_keys = _section(composed, overrides, mistakes)
    first_run = overrides.runs_per_trial[0]
    base: RunConfig | None = None
    base_error = ConfigError(())
    try:
        base = composer.run_config(first_run, {})
    except ConfigError as error:
        base_error = error
    task = None if base is None else dataset.sample(base.data).task
    config: SearchConfig | None = None
    try:
        config = read_search(section, _present(composed), task)
    except ConfigError as error:
        mistakes += error.mistakes
    if config is not None:
        try:
            base = base or composer.run_config(first_run, _ends(config, 0))
        except ConfigError as error:
            base_error = error
    if base is None:
        mistakes += base_error.mistakes
    if config is None or base is None:
        raise ConfigError(mistakes)
    mistakes += _conflicts(config, base, overrides)
    samples = _sample_runs(config, overrides, composer, mistakes)
    if mistakes:
        raise ConfigError(mistakes)
    composer.check_together(samples, engine)
    epochs = max(sample.train.epochs for sample in samples)
    return SearchPlan(config, base, epochs, _definition(composed, config, overrides), overrides, fixed_keys)


def _sweeper_params(composed: DictConfig) -> list[str]:
    params = composed.hydra.sweeper.get("params") or {}
    return [f"{key}={value}" for key, value in params.items()]


def _sweep_overrides(parsed: Sequence[Override], mistakes: list[Mistake]) -> SweepOverrides:
    fixed: dict[str, str] = {}
    axes: dict[str, tuple[str, ...]] = {}
    spans: dict[str, Any] = {}
    replaced: dict[str, Any] = {}
    for override in parsed:
        key, value = override.key_or_group, override.value()
        if not override.is_sweep_override():
            fixed[override.get_key_element()] = str(override.input_line)
            if key in REPLACED and isinstance(value, Mapping):
                replaced[key.removeprefix(f"{SECTION}.")] = value
        elif key.partition(".")[0] == SECTION:
            mistakes.append(Mistake(key, "has several values", "one search per command"))
        elif isinstance(value, IntervalSweep):
            spans[key] = {"low": value.start, "high": value.end, "log": "log" in value.tags}
        else:
            name = override.get_key_element()
            axes[key] = tuple(f"{name}={text}" for text in override.sweep_string_iterator())
    return SweepOverrides(fixed, axes, spans, replaced)


def _section(
    composed: DictConfig, overrides: SweepOverrides, mistakes: list[Mistake]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the section with the overrides applied, and the keys of its space that the command line sets."""
    try:
        plain: Any = OmegaConf.to_container(composed[SECTION], resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError([*mistakes, Mistake(SECTION, str(error).splitlines()[0])]) from error
    if not isinstance(plain, dict):
        problem = f"{plain!r} is not a mapping"
        raise ConfigError([*mistakes, Mistake(SECTION, problem, "search=tpe, or a file of your own")])
    section = plain | dict(overrides.replaced)
    if not isinstance(section.get("space", {}), Mapping):
        return section, ()
    space = flatten_space(section.get("space", {})) | dict(overrides.spans)
    set_keys = {name.lstrip("+") for name in overrides.fixed}
    fixed_keys = tuple(key for key in space if key in set_keys)
    for key in [key for key in space if key in overrides.axes]:
        mistakes.append(Mistake(key, "is both swept and searched", "one of them"))
    for key in [key for key in space if key.partition(".")[0] in FREE]:
        mistakes.append(Mistake(f"{SECTION}.space.{key}", "does not affect the result, so can't be searched"))
        del space[key]
    section["space"] = {key: value for key, value in space.items() if key not in fixed_keys}
    return section, fixed_keys


def _present(composed: DictConfig) -> dict[str, Any]:
    """Return the values of the configuration's own keys and sections, by dotted key."""
    raw: Any = OmegaConf.to_container(composed, resolve=False)
    present: dict[str, Any] = {}

    def walk(node: Mapping[str, Any], prefix: str) -> None:
        for name, value in node.items():
            key = f"{prefix}{name}"
            present[key] = OmegaConf.select(composed, key, throw_on_resolution_failure=False)
            if isinstance(value, Mapping):
                walk(value, f"{key}.")

    walk({name: value for name, value in raw.items() if name not in (SECTION, "hydra")}, "")
    return present


def _ends(config: SearchConfig, index: int) -> dict[str, str]:
    """Return the first (0) or last (-1) value of every dimension."""
    return {key: _checked_texts(dimension)[index] for key, dimension in config.space.items()}


def _checked_texts(dimension: Dimension) -> list[str]:
    """List the values of a dimension that are checked: all choices, or both ends."""
    if isinstance(dimension, Choice):
        return list(dimension.texts)
    return [override_text(dimension.low), override_text(dimension.high)]


def _sample_runs(
    config: SearchConfig, overrides: SweepOverrides, composer: TrialComposer, mistakes: list[Mistake]
) -> list[RunConfig]:
    """Compose a run for each value of each dimension and of each axis, and collect the mistakes of invalid
    ones.

    The other dimensions are as without the search, else at the low end of the space, else at the high end. A
    value that fits none of these is taken to be invalid in itself.
    """
    first_run = overrides.runs_per_trial[0]
    ends: list[dict[str, str]] = [{}, _ends(config, 0), _ends(config, -1)]
    alternatives = [
        [(first_run, {**others, key: text}) for others in ends]
        for key, dimension in config.space.items()
        for text in _checked_texts(dimension)
    ]
    for key, values in overrides.axes.items():
        rest = [texts[0] for other, texts in overrides.axes.items() if other != key]
        alternatives += [
            [((*overrides.fixed.values(), *rest, text), others) for others in ends] for text in values
        ]
    runs: list[RunConfig] = []
    for attempts in alternatives:
        try:
            runs.append(composer.first_valid(attempts))
        except ConfigError as error:
            mistakes += error.mistakes
    return runs


def _conflicts(config: SearchConfig, base: RunConfig, overrides: SweepOverrides) -> list[Mistake]:
    """List conflicts of the section with the rest of the configuration."""
    mistakes = []
    timed = [name for name in config.objectives if name.startswith(TIMES)]
    if timed and base.workers > 1 and base.timings == "alone":
        problem = f"{base.workers} runs at a time would disturb each other, and {timed[0]} is an objective"
        mistakes.append(Mistake("workers", problem, "workers=1; or timings=shared"))
    runs = len(overrides.runs_per_trial)
    if config.pruner != "none" and runs > 1:
        problem = (
            f"{config.pruner!r} prunes single runs, and each trial has {runs} ({', '.join(overrides.axes)})"
        )
        mistakes.append(Mistake(f"{SECTION}.pruner", problem, "none, or one run per trial"))
    return mistakes


def _definition(composed: DictConfig, config: SearchConfig, overrides: SweepOverrides) -> dict[str, str]:
    """Return the flat configuration of all runs without the space; interpolations are left unresolved."""
    raw: Any = OmegaConf.to_container(composed, resolve=False)
    left_out = (*FREE, *config.space, *overrides.axes)
    fixed = {
        key: value
        for key, value in flatten(raw).items()
        if not any(key == name or key.startswith(f"{name}.") for name in left_out)
    }
    return fixed | {
        key: ",".join(text.partition("=")[2] for text in texts) for key, texts in overrides.axes.items()
    }
