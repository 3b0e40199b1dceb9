"""A search: trials asked of Optuna, carried out by whoever is given them, told back, and kept.

Two studies work together. The one in memory draws the trials; the one in the journal
(`<results_dir>/searches/<study>/journal.log`, Optuna's own format) keeps what was asked and what came out. A
search goes on by being done again from its beginning, with recorded answers where there are some: the same
seed asks for the same trials, so a search that was killed at any instant has the trials of an unbroken one,
whatever state its sampler keeps. (Optuna's samplers could take their state from the storage. CMA-ES would
unpickle it there, and a draw that a kill cut in half would be another one than the whole.) A trial is put
into the journal in one line, with all of its parameters, before it is carried out.

Trials come in batches, asked together and told in order, so that which of them ends first changes nothing.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler, CmaEsSampler, GridSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from harness.core.storage import locks
from harness.core.validation import ConfigError, Mistake
from harness.shell.search.pruning import BatchPruner, pruner_of, report
from harness.shell.search.space import Dimension, SearchConfig, Span, override_text

JOURNAL = "journal.log"
DEFINITION = "definition"  # the journal's attribute with what the search is
BATCH, REASON, RUNS = "batch", "reason", "runs"  # attributes of a trial; the first one of its batch

State = Literal["complete", "pruned", "failed"]
STATES = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
TOLERANCE = 1e-6  # of a draw on another machine; another draw is another number altogether


@dataclass(frozen=True)
class Trial:
    """What is to be tried: values of the space's keys as they would stand on the command line."""

    number: int
    values: Mapping[str, str]


@dataclass(frozen=True)
class TrialResult:
    """What came out of a trial: the objectives in their order, or why there are none.

    `epochs` has the first objective after each epoch, by its number; `runs` are run ids.
    """

    state: State
    values: tuple[float, ...] = ()
    epochs: Mapping[int, float] = field(default_factory=dict)
    reason: str = ""
    runs: tuple[str, ...] = ()


TrialShouldContinue = Callable[[int, int, float], bool]
"""Whether a trial (by number) is to go on after an epoch with this value of the first objective."""

RunTrials = Callable[[Sequence[Trial], TrialShouldContinue | None], Sequence[TrialResult]]
"""Carries out the trials of a batch, all together if it can."""


class _DriftError(Exception):
    """The sampler draws another trial than the journal has."""


class Search:
    """One search in its folder; use it as a context manager, which keeps other commands out.

    `definition` is what else has to be the same each time (plain JSON values); `note` gets what people should
    know. Raises ConfigError where the folder has another search, or another command works on it.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        config: SearchConfig,
        definition: Mapping[str, Any],
        epochs: int = 1,
        note: Callable[[str], None] = print,
    ) -> None:
        self.config = config
        self._folder, self._name, self._epochs, self._note = folder, name, epochs, note
        self._distributions = {key: distribution(dimension) for key, dimension in config.space.items()}
        self._definition = described(config) | dict(definition)
        self._directions = list(config.objectives.values())
        self._held = contextlib.ExitStack()
        optuna.logging.set_verbosity(optuna.logging.ERROR)

    def __enter__(self) -> Search:
        with contextlib.ExitStack() as held:
            problem = f"another command is carrying out the search {self._name!r}"
            busy = Mistake("study", problem, "wait for it, or another name")
            held.enter_context(locks.held_alone(self._folder / "lock", busy))
            self._journal = self._open()
            self._held = held.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    @property
    def total(self) -> int:
        """How many trials there will be."""
        if self.config.sampler != "grid":
            assert self.config.trials is not None
            return self.config.trials
        size = math.prod(map(len, self.config.grid().values()))
        return min(size, self.config.trials or size)

    def trials(self) -> list[FrozenTrial]:
        """All trials so far, as the journal has them."""
        return self._journal.get_trials(deepcopy=False)

    def best(self) -> list[FrozenTrial]:
        """The best trial, or those that no other one beats in every objective; none if none is complete."""
        if not any(trial.state == TrialState.COMPLETE for trial in self.trials()):
            return []
        return self._journal.best_trials if len(self._directions) > 1 else [self._journal.best_trial]

    def run(self, carry: RunTrials, together: int = 1) -> None:
        """Go on until there are `total` trials, with `together` at a time."""
        try:
            self._run(carry, together, forced=False)
        except _DriftError:
            self._note(
                f"search {self._name!r}: Optuna draws other trials here than where the search began; it goes "
                "on from those that it has, but not as it would have without a break"
            )
            self._run(carry, together, forced=True)

    def _run(self, carry: RunTrials, together: int, forced: bool) -> None:
        """Do the search from its beginning. `forced`: with the recorded trials, whatever is drawn."""
        recorded = self.trials()
        memory = self._study(self.config.seed + len(recorded) * forced)
        for known in recorded if forced else ():
            memory.enqueue_trial(known.params)
        first = 0
        while first < max(len(recorded), self.total):
            batch = _batch(recorded, first)
            # a batch that an earlier total cut short is filled up, as if it had never been
            size = max(len(batch), min(together, self.total - first))
            asked = [memory.ask(self._distributions) for _ in range(size)]
            for trial, known in zip(asked, batch, strict=False):
                if not _same(trial.params, known.params):
                    raise _DriftError
            for trial in asked[len(batch) :]:
                self._record(trial, first)
            before = memory.get_trials(deepcopy=False)[:first]
            self._carry_out(self.trials()[first : first + size], before, carry)
            recorded = self.trials()
            for trial, known in zip(asked, recorded[first : first + size], strict=True):
                report(trial, known.intermediate_values, self.config.pruner != "none")
                memory.tell(trial, known.values if known.state == TrialState.COMPLETE else None, known.state)
            first += size

    def _carry_out(
        self, batch: Sequence[FrozenTrial], before: Sequence[FrozenTrial], carry: RunTrials
    ) -> None:
        """Have those trials of a batch done that are not, and write down what came out."""
        todo = [trial for trial in batch if not trial.state.is_finished()]
        if not todo:
            return
        umpire: TrialShouldContinue | None = None
        if self.config.pruner != "none":
            umpire = BatchPruner(self._name, self.config, self._epochs, before).judge
        answers = carry([Trial(trial.number, texts(trial.params)) for trial in todo], umpire)
        for trial, answer in zip(todo, answers, strict=True):
            self._write(trial.number, answer)

    def _study(self, seed: int) -> Study:
        return optuna.create_study(
            directions=self._directions,
            sampler=sampler_of(self.config, seed),
            pruner=pruner_of(self.config, self._epochs),
            study_name=self._name,
        )

    def _record(self, trial: optuna.Trial, batch: int) -> None:
        """Put a new trial into the journal, with all of its parameters at once."""
        made = optuna.create_trial(
            state=TrialState.RUNNING,
            params=trial.params,
            distributions=self._distributions,
            user_attrs={BATCH: batch},
        )
        self._journal.add_trial(made)

    def _write(self, number: int, answer: TrialResult) -> None:
        """Put what came out of a trial into the journal; with the last line it has ended."""
        trial_id = self._storage.get_trial_id_from_study_id_trial_number(self._study_id, number)
        for key, said in ((RUNS, list(answer.runs)), (REASON, answer.reason)):
            if said:
                self._storage.set_trial_user_attr(trial_id, key, said)
        for epoch, value in answer.epochs.items() if self.config.pruner != "none" else ():
            if not math.isnan(value):
                self._storage.set_trial_intermediate_value(trial_id, epoch, value)
        values = list(answer.values) if answer.state == "complete" else None
        self._storage.set_trial_state_values(trial_id, STATES[answer.state], values)

    def _open(self) -> Study:
        """The journal, made if there is none. Nobody else writes to it: we hold the folder."""
        path = self._folder / JOURNAL
        (self._folder / f"{JOURNAL}.lock").unlink(missing_ok=True)  # of a command that was killed
        if path.exists():
            _cut_half_a_line(path)
        self._storage = JournalStorage(JournalFileBackend(str(path)))
        journal = optuna.create_study(
            storage=self._storage,
            directions=self._directions,
            study_name=self._name,
            sampler=RandomSampler(),
            load_if_exists=True,
        )
        self._study_id = self._storage.get_study_id_from_name(self._name)
        known = journal.user_attrs.get(DEFINITION)
        if known is None:  # new
            journal.set_user_attr(DEFINITION, self._definition)
        elif mistakes := _differences(self._name, known, self._definition):
            raise ConfigError(mistakes)
        return journal


def distribution(dimension: Dimension) -> BaseDistribution:
    """A dimension as Optuna has it."""
    if not isinstance(dimension, Span):
        return CategoricalDistribution(dimension.texts)
    low, high, step = dimension.low, dimension.high, dimension.step
    if step is not None:
        high = dimension.values()[-1]  # the last one that the steps reach
    if dimension.whole:
        return IntDistribution(int(low), int(high), dimension.log, int(step or 1))
    return FloatDistribution(low, high, dimension.log, step)


def sampler_of(config: SearchConfig, seed: int) -> BaseSampler:
    """Optuna's sampler."""
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
    """Optuna's grid, which would stop a loop of Optuna's own when it is through."""

    def after_trial(self, *_: object) -> None:
        """Nothing: the search knows how many trials there are."""


def runs_of(trial: FrozenTrial) -> list[str]:
    """The ids of the runs that a trial of the journal was told with; none of one that could not be."""
    return list(trial.user_attrs.get(RUNS, ()))


def texts(params: Mapping[str, Any]) -> dict[str, str]:
    """The parameters of a trial as they would stand on the command line."""
    return {key: override_text(value) for key, value in params.items()}


def described(config: SearchConfig) -> dict[str, Any]:
    """What makes a search the same one, by dotted keys; `trials` may grow."""
    plain: dict[str, Any] = {
        "search.sampler": config.sampler,
        "search.seed": config.seed,
        "search.pruner": config.pruner,
        "search.objectives": config.mark(),
    }
    for key, dimension in config.space.items():
        plain[f"search.space.{key}"] = _described(dimension)
    return plain


def _described(dimension: Dimension) -> str:
    if isinstance(dimension, Span):
        parts = {"low": dimension.low, "high": dimension.high, "step": dimension.step, "log": dimension.log}
        return override_text({key: value for key, value in parts.items() if value not in (None, False)})
    return override_text({"choices": list(dimension.texts)})


def _differences(name: str, known: Mapping[str, Any], asked: Mapping[str, Any]) -> list[Mistake]:
    differing = [key for key in dict.fromkeys((*known, *asked)) if known.get(key) != asked.get(key)]
    return [
        Mistake(
            key,
            f"search {name!r} was begun {_with(known.get(key))}, and this one is {_with(asked.get(key))}",
            "the same as before, or another name: study=",
        )
        for key in differing
    ]


def _with(value: object) -> str:
    return "without it" if value is None else f"with {override_text(value)}"


def _batch(recorded: Sequence[FrozenTrial], first: int) -> list[FrozenTrial]:
    """The recorded trials that were asked together, of which this is the place of the first."""
    return [trial for trial in recorded[first:] if trial.user_attrs[BATCH] == first]


def _same(drawn: Mapping[str, Any], known: Mapping[str, Any]) -> bool:
    def same(one: object, other: object) -> bool:
        if isinstance(one, float) and isinstance(other, float):
            return math.isclose(one, other, rel_tol=TOLERANCE)
        return one == other

    return drawn.keys() == known.keys() and all(same(drawn[key], known[key]) for key in drawn)


def _cut_half_a_line(path: Path) -> None:
    """Cut what a kill in the middle of a write left at a journal's end: Optuna can't read on after it."""
    with path.open("r+b") as file:
        text = file.read()
        file.truncate(text.rfind(b"\n") + 1)
