"""What a search is asked to do, all of it checked before the first trial.

The space must be of keys that there are, and every choice and both ends of every range are composed and
checked like a run's configuration. A combination of values may still be impossible (a width that the number
of heads does not divide): that is found when it is drawn, and is a failed trial.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness.core.config.flatten import flatten as flat
from harness.core.config.identity import NOT_IN_IDENTITY
from harness.core.config.run_config import RunConfig, fit
from harness.core.data import dataset
from harness.core.validation import ConfigError, Mistake
from harness.shell.compose import overrides
from harness.shell.compose.origins import Origins, locate
from harness.shell.compose.overrides import Groups
from harness.shell.compose.run_config import run_config
from harness.shell.engines import slots
from harness.shell.engines.protocol import Engine
from harness.shell.runs.inputs import RunInputs
from harness.shell.runs.prepare import prepare
from harness.shell.search.space import (
    TIMES,
    Choice,
    Dimension,
    SearchConfig,
    flatten,
    override_text,
    read,
)

SECTION = "search"
MARK = f"{SECTION}.mark"  # what a run is told of its trial, see `harness.core.config.run_config.TrialMark`
REPLACED = (f"{SECTION}.objectives", f"{SECTION}.space")  # not merged, if they are given as a whole
FREE = (SECTION, "hydra", "framework.python", *NOT_IN_IDENTITY)
"""What a search that goes on may have otherwise than when it began."""


@dataclass(frozen=True)
class SweepOverrides:
    """What the command line (and an experiment's `hydra.sweeper.params`) asks for besides the search's file:
    `fixed` overrides by key, for each swept key its overrides (`axes`), ranges of the space (`spans`), and
    parts of the section that are given as a whole (`replaced`)."""

    fixed: Mapping[str, str]
    axes: Mapping[str, tuple[str, ...]]
    spans: Mapping[str, Any]
    replaced: Mapping[str, Any]

    @property
    def members(self) -> list[tuple[str, ...]]:
        """The overrides of each run of a trial."""
        return [(*self.fixed.values(), *values) for values in itertools.product(*self.axes.values())]


@dataclass(frozen=True)
class SearchPlan:
    """A search that can start: `base` is one of its runs, `epochs` the most that a run has, `definition` what
    has to be the same when it goes on, `set_aside` the keys of the space that the command line fixes."""

    config: SearchConfig
    base: RunConfig
    epochs: int
    definition: Mapping[str, Any]
    asked: SweepOverrides
    set_aside: tuple[str, ...]


class Composer:
    """Composes and checks runs as the launcher will."""

    def __init__(self, composed: DictConfig, loader: ConfigLoader, groups: Groups) -> None:
        self._composed, self._loader, self._groups = composed, loader, groups
        self._inputs = RunInputs()

    def parse(self, arguments: Sequence[str]) -> list[Override]:
        """Overrides, read as Hydra does."""
        return OverridesParser.create(config_loader=self._loader).parse_overrides(list(arguments))

    def job(self, fixed: Sequence[str], values: Mapping[str, str], trial: int, objectives: str) -> list[str]:
        """The overrides of a trial's run, as the launcher takes them; raises ConfigError."""
        kept, mistakes = overrides.check([f"{key}={text}" for key, text in values.items()], self._groups)
        for override in self.parse(kept):
            if override.is_sweep_override():
                key, value = override.key_or_group, str(override.input_line).partition("=")[2]
                mistakes.append(Mistake(key, f"{value!r} are several values", f"one list: [{value}]"))
        if mistakes:
            raise ConfigError(_sourced(mistake, values) for mistake in mistakes)
        return [*fixed, *kept, f"++{MARK}={{trial:{trial},objectives:'{objectives}'}}"]

    def run(self, fixed: Sequence[str], values: Mapping[str, str]) -> RunConfig:
        """The run with these overrides and these values of the space, checked; raises ConfigError."""
        try:
            composed = self._loader.load_sweep_config(self._composed, self.job(fixed, values, 0, ""))
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(overrides.refusal(error, ())) from error
        origins = Origins.of(composed)
        try:
            config = run_config(composed, origins, self._inputs.datasets)
            fit(config.model, config.train.loss, dataset.sample(config.data))
        except ConfigError as error:
            raise ConfigError(_sourced(m, values) for m in locate(error.mistakes, [origins])) from None
        return config

    def first_of(self, attempts: Iterable[tuple[Sequence[str], Mapping[str, str]]]) -> RunConfig:
        """The first of some runs that can be; raises the ConfigError of the last one if none can."""
        refused = ConfigError(())
        for fixed, values in attempts:
            try:
                return self.run(fixed, values)
            except ConfigError as error:
                refused = error
        raise refused

    def check_together(self, configs: Sequence[RunConfig], engine: Engine | None) -> None:
        """Raise ConfigError for what shows with the data at hand, or of all runs together."""
        runs = prepare(configs, self._inputs)
        if engine is None:
            slots.check_concurrency(runs)
        else:
            engine.check(runs)


def plan_search(
    composed: DictConfig,
    arguments: Sequence[str],
    composer: Composer,
    mistakes: Sequence[Mistake],
    engine: Engine | None,
) -> SearchPlan:
    """Read and check a search; raises ConfigError with `mistakes` (known before) and all others.

    `composed` is what Hydra composed for the sweep, `arguments` are its overrides.
    """
    found = list(mistakes)
    asked = _asked(composer.parse([*_params(composed), *arguments]), found)
    section, set_aside = _section(composed, asked, found)
    plain: RunConfig | None = None
    refusal = ConfigError(())
    try:
        plain = composer.run(asked.members[0], {})
    except ConfigError as error:
        refusal = error
    task = None if plain is None else dataset.sample(plain.data).task
    config: SearchConfig | None = None
    try:
        config = read(section, _present(composed), task)
    except ConfigError as error:
        found += error.mistakes
    if config is not None:
        try:
            plain = plain or composer.run(asked.members[0], _ends(config, 0))
        except ConfigError as error:
            refusal = error
    if plain is None:
        found += refusal.mistakes
    if config is None or plain is None:
        raise ConfigError(found)
    found += _unsuitable(config, plain, asked)
    points, wrong = _points(config, asked, composer)
    if found + wrong:
        raise ConfigError(found + wrong)
    composer.check_together(points, engine)
    epochs = max(point.train.epochs for point in points)
    return SearchPlan(config, plain, epochs, _definition(composed, config, asked), asked, set_aside)


def _params(composed: DictConfig) -> list[str]:
    params = composed.hydra.sweeper.get("params") or {}
    return [f"{key}={value}" for key, value in params.items()]


def _asked(parsed: Sequence[Override], found: list[Mistake]) -> SweepOverrides:
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
            found.append(Mistake(key, "has several values", "one search a command"))
        elif isinstance(value, IntervalSweep):
            spans[key] = {"low": value.start, "high": value.end, "log": "log" in value.tags}
        else:
            name = override.get_key_element()
            axes[key] = tuple(f"{name}={text}" for text in override.sweep_string_iterator())
    return SweepOverrides(fixed, axes, spans, replaced)


def _section(
    composed: DictConfig, asked: SweepOverrides, found: list[Mistake]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The section as it is meant, and the keys of its space that the command line fixes."""
    try:
        plain: Any = OmegaConf.to_container(composed[SECTION], resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError([*found, Mistake(SECTION, str(error).splitlines()[0])]) from error
    if not isinstance(plain, dict):
        raise ConfigError(
            [*found, Mistake(SECTION, f"{plain!r} is not a mapping", "search=tpe, or a file of yours")]
        )
    section = plain | dict(asked.replaced)
    if not isinstance(section.get("space", {}), Mapping):
        return section, ()
    space = flatten(section.get("space", {})) | dict(asked.spans)
    fixed = {name.lstrip("+") for name in asked.fixed}
    set_aside = tuple(key for key in space if key in fixed)
    for key in [key for key in space if key in asked.axes]:
        found.append(Mistake(key, "is swept, and searched too", "one of them"))
    for key in [key for key in space if key.partition(".")[0] in FREE]:
        found.append(Mistake(f"{SECTION}.space.{key}", "changes no result: there is nothing to find"))
        del space[key]
    section["space"] = {key: value for key, value in space.items() if key not in set_aside}
    return section, set_aside


def _present(composed: DictConfig) -> dict[str, Any]:
    """The configuration's own keys, dotted, with their values; those of sections with the section."""
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


def _ends(config: SearchConfig, which: int) -> dict[str, str]:
    """The first (0) or last (-1) value of every dimension."""
    return {key: _texts(dimension)[which] for key, dimension in config.space.items()}


def _texts(dimension: Dimension) -> list[str]:
    """What is checked of a dimension: all choices, or both ends."""
    if isinstance(dimension, Choice):
        return list(dimension.texts)
    return [override_text(dimension.low), override_text(dimension.high)]


def _points(
    config: SearchConfig, asked: SweepOverrides, composer: Composer
) -> tuple[list[RunConfig], list[Mistake]]:
    """A run for each value of each dimension and of each axis, and what is wrong with those that can't be.

    The others are as they are without the search, else at one end of the space, else at the other: what does
    not go with any of these is taken to be wrong in itself.
    """
    first = asked.members[0]
    ends: list[dict[str, str]] = [{}, _ends(config, 0), _ends(config, -1)]
    wanted = [
        [(first, {**others, key: text}) for others in ends]
        for key, dimension in config.space.items()
        for text in _texts(dimension)
    ]
    for key, values in asked.axes.items():
        rest = [texts[0] for other, texts in asked.axes.items() if other != key]
        wanted += [[((*asked.fixed.values(), *rest, text), others) for others in ends] for text in values]
    points: list[RunConfig] = []
    wrong: list[Mistake] = []
    for attempts in wanted:
        try:
            points.append(composer.first_of(attempts))
        except ConfigError as error:
            wrong += error.mistakes
    return points, wrong


def _unsuitable(config: SearchConfig, base: RunConfig, asked: SweepOverrides) -> list[Mistake]:
    """What does not go with the rest of the request."""
    mistakes = []
    timed = [name for name in config.objectives if name.startswith(TIMES)]
    if timed and base.workers > 1 and base.timings == "alone":
        problem = f"{base.workers} at a time would disturb each other, and {timed[0]} is searched for"
        mistakes.append(Mistake("workers", problem, "workers=1; or timings=shared"))
    members = len(asked.members)
    if config.pruner != "none" and members > 1:
        problem = (
            f"{config.pruner!r} judges single runs, and each trial has {members} ({', '.join(asked.axes)})"
        )
        mistakes.append(Mistake(f"{SECTION}.pruner", problem, "none, or one run a trial"))
    return mistakes


def _definition(composed: DictConfig, config: SearchConfig, asked: SweepOverrides) -> dict[str, str]:
    """The configuration of all runs apart from the space, flat; values that refer to others as they stand."""
    raw: Any = OmegaConf.to_container(composed, resolve=False)
    left_out = (*FREE, *config.space, *asked.axes)
    fixed = {
        key: value
        for key, value in flat(raw).items()
        if not any(key == name or key.startswith(f"{name}.") for name in left_out)
    }
    return fixed | {key: ",".join(t.partition("=")[2] for t in texts) for key, texts in asked.axes.items()}


def _sourced(mistake: Mistake, values: Mapping[str, str]) -> Mistake:
    """The mistake with its place in the search's space: nobody typed the override that it is about."""
    key = mistake.source.removeprefix("the override ").partition("=")[0]
    if not mistake.source.startswith("the override ") or key.lstrip("+") not in values:
        return mistake
    key = key.lstrip("+")
    return replace(mistake, source=f"{SECTION}.space.{key}, which has {values[key]}")
