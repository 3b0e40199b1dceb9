"""The section `search` of a configuration, parsed and checked: sampler, space, objectives, pruner."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import quote

from harness.core.config.run_config import METRICS, Positive, Whole
from harness.core.data.dataset import Task
from harness.core.training.metrics import CLASSIFICATION, REGRESSION
from harness.core.validation import ConfigError, Mistake, nearest, parse
from harness.shell.search.space import Choice, Dimension, Span, flatten_space, override_text

Sampler = Literal["grid", "random", "tpe", "cmaes", "nsga2"]
Pruner = Literal["none", "median", "hyperband"]
Direction = Literal["minimize", "maximize"]

DIMENSION = "{low: ..., high: ..., log: true}, {low: ..., high: ..., step: ...} or {choices: [...]}"
RESULTS = (
    *("speed/step_ms", "speed/samples_per_second", "speed/gflops", "speed/share_of_limit"),
    *("time/import_s", "time/compile_s", "time/train_s", "time/to_target_s", "memory/peak_mb"),
)
"""Metrics of a run that do not depend on its predictions."""
TIMES = ("speed/", "time/")
"""Prefixes of metrics that parallel runs would distort."""


@dataclass(frozen=True)
class SearchConfig:
    """The section `search`, checked as far as possible without the rest of the configuration.

    `trials` is the total, including trials of earlier commands; None means the whole grid. `objectives` maps
    metrics of a run to their directions; the pruner uses the first.
    """

    sampler: Sampler
    space: Mapping[str, Dimension]
    objectives: Mapping[str, Direction]
    trials: int | None
    seed: int
    pruner: Pruner

    def grid(self) -> dict[str, list[Any]]:
        """List the values of each dimension, for the sampler `grid`."""
        return {
            key: list(dimension.texts) if isinstance(dimension, Choice) else dimension.values()
            for key, dimension in self.space.items()
        }

    def objectives_text(self) -> str:
        """Format the objectives, for example `minimize val/loss`."""
        return ", ".join(f"{direction} {name}" for name, direction in self.objectives.items())


@dataclass(frozen=True)
class _Section:
    sampler: Sampler
    space: dict[str, Any]
    objectives: dict[str, Any]
    trials: Positive | None = None
    seed: Whole = 0
    pruner: Pruner = "none"


@dataclass(frozen=True)
class _Choices:
    choices: tuple[Any, ...]


@dataclass
class _Mistakes:
    """Collects mistakes while a section is read."""

    items: list[Mistake] = field(default_factory=list)

    def add(self, key: str, problem: str, allowed: str = "", suggestion: str = "") -> None:
        self.items.append(Mistake(f"search.{key}", problem, allowed, suggestion))


def search_folder(results_dir: Path, study: str) -> Path:
    """The folder of a study's search."""
    name = quote(study, safe=" =+,()")
    return results_dir / "searches" / (name if name.strip(".") else name.replace(".", "%2E"))


def read_search(raw: Mapping[str, Any], present: Mapping[str, Any], task: Task | None) -> SearchConfig:
    """Parse and check the section `search`; raises ConfigError with all mistakes in it.

    `present` has the values of the configuration's keys, dotted, and of its groups. `task`, if known,
    determines which metrics the runs will have.
    """
    mistakes = _Mistakes()
    is_valid = True
    try:
        section = parse(_Section, raw, "search")
    except ConfigError as error:
        # continue with the valid parts, so that their mistakes are reported at the same time
        mistakes.items += error.mistakes
        parts = {name: raw[name] for name in ("space", "objectives") if isinstance(raw.get(name), Mapping)}
        section = _Section("random", parts.get("space", {}), parts.get("objectives", {}))
        is_valid = False
    space = {
        key: dimension
        for key, value in flatten_space(section.space).items()
        if (dimension := _dimension(key, value, present, mistakes)) is not None
    }
    objectives = _objectives(section.objectives, task, mistakes)
    config = SearchConfig(section.sampler, space, objectives, section.trials, section.seed, section.pruner)
    if is_valid:
        if not section.space:
            mistakes.add("space", "is empty", f"keys of the configuration, each with {DIMENSION}")
        if not any(direction is not None for direction in section.objectives.values()):
            mistakes.add("objectives", "are none", "{val/loss: minimize}")
        _check_sampler(config, mistakes)
        _check_pruner(config, mistakes)
    if mistakes.items:
        raise ConfigError(mistakes.items)
    return config


def available_metrics(task: Task | None) -> list[str]:
    """List the metrics that a run has at its end; for an unknown task, those of any."""
    kinds: tuple[tuple[str, ...], ...] = (CLASSIFICATION, REGRESSION)
    if task is not None:
        kinds = (CLASSIFICATION,) if task.kind == "classification" else (REGRESSION,)
    figures = dict.fromkeys(["loss", *(name for kind in kinds for name in kind)])
    validation = [f"val/{name}" for name in figures if f"val/{name}" in METRICS]
    return ["train/loss", *validation, *(f"test/{name}" for name in figures), *RESULTS]


def _dimension(key: str, value: object, present: Mapping[str, Any], mistakes: _Mistakes) -> Dimension | None:
    place = f"space.{key}"
    if key not in present:
        mistakes.add(place, "is not a key of the configuration", suggestion=nearest(key, present))
        return None
    if not isinstance(value, Mapping):
        mistakes.add(place, f"{value!r} is neither a range nor choices", DIMENSION)
        return None
    try:
        if "choices" not in value:
            return _span(place, parse(Span, value, f"search.{place}"), present[key], mistakes)
        choices = parse(_Choices, value, f"search.{place}").choices
    except ConfigError as error:
        mistakes.items += error.mistakes
        return None
    texts = tuple(map(override_text, choices))
    if not texts:
        mistakes.add(place, "has no choices", "{choices: [first, second, ...]}")
    for text in dict.fromkeys(text for text in texts if texts.count(text) > 1):
        mistakes.add(place, f"{text!r} is listed {texts.count(text)} times")
    return Choice(texts)


def _span(place: str, span: Span, value: object, mistakes: _Mistakes) -> Span:
    if isinstance(value, float):  # {low: 0, high: 1} for a float is not a choice between 0 and 1
        step = None if span.step is None else float(span.step)
        span = Span(float(span.low), float(span.high), span.log, step)
    if span.low >= span.high:
        mistakes.add(place, f"low ({span.low!r}) is not below high ({span.high!r})")
    if span.log and span.low <= 0:
        mistakes.add(place, f"low ({span.low!r}) has no logarithm", "log: true with low above 0")
    if span.log and span.step is not None:
        mistakes.add(place, "has both log and step", "one of them")
    if span.step is not None and not 0 < span.step <= max(0, span.high - span.low):
        problem = f"step ({span.step!r}) does not fit between low and high"
        mistakes.add(place, problem, "> 0 and <= high - low")
    return span


def _objectives(raw: Mapping[str, Any], task: Task | None, mistakes: _Mistakes) -> dict[str, Direction]:
    objectives: dict[str, Direction] = {}
    metrics = available_metrics(task)
    for name, direction in raw.items():
        if direction is None:  # removes an objective of a file
            continue
        if name not in metrics:
            if task is None:
                problem = "is not a metric"
            elif name in available_metrics(None):
                problem = "is not a metric of this task"
            else:
                problem = "is not a metric of such a run"
            mistakes.add(f"objectives.{name}", problem, ", ".join(metrics), nearest(name, metrics))
        elif direction not in get_args(Direction):
            allowed = get_args(Direction)
            suggestion = nearest(str(direction), allowed)
            mistakes.add(f"objectives.{name}", f"{direction!r} is not known", ", ".join(allowed), suggestion)
        else:
            objectives[name] = direction
    return objectives


def _check_sampler(config: SearchConfig, mistakes: _Mistakes) -> None:
    spans = {key: span for key, span in config.space.items() if isinstance(span, Span)}
    if config.sampler != "grid":
        if config.trials is None:
            mistakes.add("trials", "is missing: only a grid is finite", "an integer from 1")
    else:
        for key, span in spans.items():
            if span.step is None and (span.log or not span.whole):
                problem = "a grid needs values, and this range has no steps"
                mistakes.add(f"space.{key}", problem, "{choices: [...]}, or {low: ..., high: ..., step: ...}")
    if config.sampler == "cmaes":
        if config.space and not spans:
            problem = "'cmaes' needs a range of numbers, and the space has choices only"
            mistakes.add("sampler", problem, "tpe, random, grid")
        if len(config.objectives) > 1:
            mistakes.add("sampler", "'cmaes' allows one objective", "tpe, nsga2, random, grid")


def _check_pruner(config: SearchConfig, mistakes: _Mistakes) -> None:
    if config.pruner == "none" or not config.objectives:
        return
    if len(config.objectives) > 1:
        problem = f"{config.pruner!r} allows one objective, and there are {len(config.objectives)}"
        mistakes.add("pruner", problem, "pruner: none")
        return
    (name,) = config.objectives
    if name not in ("train/loss", *METRICS):
        problem = f"{config.pruner!r} decides after each epoch, when {name} is not known"
        mistakes.add("pruner", problem, f"pruner: none, or one of {', '.join(('train/loss', *METRICS))}")
