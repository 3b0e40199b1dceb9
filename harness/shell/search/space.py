"""What is searched and how: the section `search` of a configuration, read and checked.

A space is a mapping from keys of the configuration to ranges or choices. Choices are kept as the text that
would stand on the command line (`[64,32]`, `relu`, `null`), so that a trial is a list of overrides like any
other and the best one can be repeated by hand. Nothing here needs Optuna, which takes a while to import.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import quote

from harness.core.config.run_config import METRICS, Positive, Whole
from harness.core.data.dataset import Task
from harness.core.training.metrics import CLASSIFICATION, REGRESSION
from harness.core.validation import ConfigError, Mistake, nearest, parse

Sampler = Literal["grid", "random", "tpe", "cmaes", "nsga2"]
Pruner = Literal["none", "median", "hyperband"]
Direction = Literal["minimize", "maximize"]

SPAN_KEYS = frozenset({"low", "high", "log", "step"})
LEAF_KEYS = SPAN_KEYS | {"choices"}
DIMENSION = "{low: ..., high: ..., log: true}, {low: ..., high: ..., step: ...} or {choices: [...]}"
RESULTS = (
    *("speed/step_ms", "speed/samples_per_second", "speed/gflops", "speed/share_of_limit"),
    *("time/import_s", "time/compile_s", "time/train_s", "time/to_target_s", "memory/peak_mb"),
)
"""Metrics that a run has besides those of its predictions."""
TIMES = ("speed/", "time/")


@dataclass(frozen=True)
class Span:
    """Numbers from `low` to `high`, both included; whole ones if both are whole. `log`: evenly spread over
    the orders of magnitude. `step`: only every so many."""

    low: int | float
    high: int | float
    log: bool = False
    step: int | float | None = None

    @property
    def whole(self) -> bool:
        """Whether it has whole numbers only."""
        return all(isinstance(bound, int) for bound in (self.low, self.high, self.step or 1))

    def values(self) -> list[int | float]:
        """All of its numbers; raises ValueError for a range that has no steps."""
        step = self.step or (1 if self.whole and not self.log else None)
        if step is None:
            raise ValueError("no steps")
        low, high, width = (Decimal(repr(bound)) for bound in (self.low, self.high, step))
        numbers = [low + i * width for i in range(int((high - low) / width) + 1)]
        return [int(number) if self.whole else float(number) for number in numbers]


@dataclass(frozen=True)
class Choice:
    """Values as they would stand on the command line."""

    texts: tuple[str, ...]


Dimension = Span | Choice


@dataclass(frozen=True)
class SearchConfig:
    """The section `search`, checked as far as it can be without the rest of the configuration.

    `trials` counts all, those of earlier commands included; None is the whole grid. `objectives` are metrics
    of a run with their directions; the pruner goes by the first.
    """

    sampler: Sampler
    space: Mapping[str, Dimension]
    objectives: Mapping[str, Direction]
    trials: int | None
    seed: int
    pruner: Pruner

    def grid(self) -> dict[str, list[Any]]:
        """The values of each dimension, for a search whose sampler is `grid`."""
        return {
            key: list(dimension.texts) if isinstance(dimension, Choice) else dimension.values()
            for key, dimension in self.space.items()
        }

    def mark(self) -> str:
        """The objectives in words."""
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
class _Reader:
    """Collects mistakes while a section is read."""

    mistakes: list[Mistake] = field(default_factory=list)

    def refuse(self, key: str, problem: str, allowed: str = "", suggestion: str = "") -> None:
        self.mistakes.append(Mistake(f"search.{key}", problem, allowed, suggestion))


def folder_of(results_dir: Path, study: str) -> Path:
    """Where the search of a study is kept."""
    name = quote(study, safe=" =+,()")
    return results_dir / "searches" / (name if name.strip(".") else name.replace(".", "%2E"))


def read(raw: Mapping[str, Any], present: Mapping[str, Any], task: Task | None) -> SearchConfig:
    """Read the section `search`; raises ConfigError with everything that is wrong with it.

    `present` has the values of the configuration's own keys, dotted, and of its groups; `task`, if known,
    says which metrics the runs will have.
    """
    reader = _Reader()
    whole = True
    try:
        section = parse(_Section, raw, "search")
    except ConfigError as error:
        # go on with what there is, so that the mistakes in it are not found one command later
        reader.mistakes += error.mistakes
        kept = {name: raw[name] for name in ("space", "objectives") if isinstance(raw.get(name), Mapping)}
        section = _Section("random", kept.get("space", {}), kept.get("objectives", {}))
        whole = False
    space = {
        key: dimension
        for key, value in flatten(section.space).items()
        if (dimension := _dimension(key, value, present, reader)) is not None
    }
    objectives = _objectives(section.objectives, task, reader)
    config = SearchConfig(section.sampler, space, objectives, section.trials, section.seed, section.pruner)
    if whole:
        if not section.space:
            reader.refuse("space", "is empty", f"keys of the configuration, each with {DIMENSION}")
        if not any(direction is not None for direction in section.objectives.values()):
            reader.refuse("objectives", "are none", "{val/loss: minimize}")
        _check_sampler(config, reader)
        _check_pruner(config, reader)
    if reader.mistakes:
        raise ConfigError(reader.mistakes)
    return config


def flatten(space: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A space by dotted keys, however deep it is nested: `search.space.train.batch_size.low=8` on the command
    line reaches into the file's `train.batch_size`. A key that is null is left out."""
    flat: dict[str, Any] = {}
    for name, value in space.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and not LEAF_KEYS & set(value):
            for inner, item in flatten(value, f"{key}.").items():
                flat[inner] = _merged(flat.get(inner), item)
        else:
            flat[key] = _merged(flat.get(key), value)
    return flat if prefix else {key: value for key, value in flat.items() if value is not None}


def _merged(first: object, second: object) -> object:
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        return {**first, **second}
    return second


def override_text(value: object) -> str:
    """A value as it would stand on the command line; a text is taken as that already."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{override_text(item)}" for key, item in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ",".join(map(override_text, value)) + "]"
    return value if isinstance(value, str) else repr(value)


def metrics_of(task: Task | None) -> list[str]:
    """The metrics that a run has at its end; of any task where it is not known."""
    kinds: tuple[tuple[str, ...], ...] = (CLASSIFICATION, REGRESSION)
    if task is not None:
        kinds = (CLASSIFICATION,) if task.kind == "classification" else (REGRESSION,)
    figures = dict.fromkeys(["loss", *(name for kind in kinds for name in kind)])
    judged = [f"val/{name}" for name in figures if f"val/{name}" in METRICS]
    return ["train/loss", *judged, *(f"test/{name}" for name in figures), *RESULTS]


def _dimension(key: str, value: object, present: Mapping[str, Any], reader: _Reader) -> Dimension | None:
    place = f"space.{key}"
    if key not in present:
        reader.refuse(place, "is no key of the configuration", suggestion=nearest(key, present))
        return None
    if not isinstance(value, Mapping):
        reader.refuse(place, f"{value!r} is no range and no choice", DIMENSION)
        return None
    try:
        if "choices" not in value:
            return _span(place, parse(Span, value, f"search.{place}"), present[key], reader)
        found = parse(_Choices, value, f"search.{place}")
    except ConfigError as error:
        reader.mistakes += error.mistakes
        return None
    texts = tuple(map(override_text, found.choices))
    if not texts:
        reader.refuse(place, "has no choices", "{choices: [first, second, ...]}")
    for text in dict.fromkeys(text for text in texts if texts.count(text) > 1):
        reader.refuse(place, f"{text!r} is there {texts.count(text)} times")
    return Choice(texts)


def _span(place: str, span: Span, value: object, reader: _Reader) -> Span:
    if isinstance(value, float):  # {low: 0, high: 1} of a rate is not 0 or 1
        step = None if span.step is None else float(span.step)
        span = Span(float(span.low), float(span.high), span.log, step)
    if span.low >= span.high:
        reader.refuse(place, f"low ({span.low!r}) is not below high ({span.high!r})")
    if span.log and span.low <= 0:
        reader.refuse(place, f"low ({span.low!r}) has no logarithm", "log: true with low above 0")
    if span.log and span.step is not None:
        reader.refuse(place, "has both log and step", "one of them")
    if span.step is not None and not 0 < span.step <= max(0, span.high - span.low):
        reader.refuse(
            place, f"step ({span.step!r}) does not fit between low and high", "> 0 and <= high - low"
        )
    return span


def _objectives(raw: Mapping[str, Any], task: Task | None, reader: _Reader) -> dict[str, Direction]:
    found: dict[str, Direction] = {}
    known = metrics_of(task)
    for name, direction in raw.items():
        if direction is None:  # takes out what a file has
            continue
        if name not in known:
            if task is None:
                problem = "is no metric"
            elif name in metrics_of(None):
                problem = "is no metric of this task"
            else:
                problem = "is no metric of such a run"
            reader.refuse(f"objectives.{name}", problem, ", ".join(known), nearest(name, known))
        elif direction not in get_args(Direction):
            allowed = get_args(Direction)
            suggestion = nearest(str(direction), allowed)
            reader.refuse(f"objectives.{name}", f"{direction!r} is not known", ", ".join(allowed), suggestion)
        else:
            found[name] = direction
    return found


def _check_sampler(config: SearchConfig, reader: _Reader) -> None:
    spans = {key: span for key, span in config.space.items() if isinstance(span, Span)}
    if config.sampler != "grid":
        if config.trials is None:
            reader.refuse("trials", "is missing: only a grid has an end of its own", "a whole number from 1")
    else:
        for key, span in spans.items():
            if span.step is None and (span.log or not span.whole):
                problem = "a grid needs values, and this range has no steps"
                reader.refuse(
                    f"space.{key}", problem, "{choices: [...]}, or {low: ..., high: ..., step: ...}"
                )
    if config.sampler == "cmaes":
        if config.space and not spans:
            problem = "'cmaes' needs a range of numbers, and the space has choices only"
            reader.refuse("sampler", problem, "tpe, random, grid")
        if len(config.objectives) > 1:
            reader.refuse("sampler", "'cmaes' takes one objective", "tpe, nsga2, random, grid")


def _check_pruner(config: SearchConfig, reader: _Reader) -> None:
    if config.pruner == "none" or not config.objectives:
        return
    if len(config.objectives) > 1:
        problem = f"{config.pruner!r} takes one objective, and there are {len(config.objectives)}"
        reader.refuse("pruner", problem, "pruner: none")
        return
    (name,) = config.objectives
    if name not in ("train/loss", *METRICS):
        problem = f"{config.pruner!r} judges after each epoch, when {name} is not known"
        reader.refuse("pruner", problem, f"pruner: none, or one of {', '.join(('train/loss', *METRICS))}")
