"""A search: sample trials with Optuna, let the caller run them, record the results, resume after a kill.

Two Optuna studies work together. The one in memory samples the trials; the one in the journal
(`<results_dir>/searches/<study>/journal.log`, Optuna's own format) records trials and results. A search
resumes by starting over, using recorded results where they exist: the same seed samples the same trials, so a
search that was killed at any instant ends with the same trials as an uninterrupted one, whatever state its
sampler has. (Optuna's samplers could restore their state from the storage, but CMA-ES would unpickle it, and
a half-recorded draw would differ from a complete one.) Each trial is written to the journal in one line, with
all of its parameters, before it runs.

Trials come in batches: sampled together, and told to the sampler in order, so that the order in which they
end does not matter.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.samplers import RandomSampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from harness.core.storage import locks
from harness.core.validation import ConfigError, Mistake
from harness.shell.search.config import SearchConfig
from harness.shell.search.pruning import BatchPruner, pruner_of, record_epochs
from harness.shell.search.samplers import distribution_of, sampler_of
from harness.shell.search.space import Dimension, Span, override_text, override_texts

JOURNAL = "journal.log"
DEFINITION = "definition"  # attribute of the journal's study: what identifies the search
BATCH, REASON, RUNS = "batch", "reason", "runs"  # attributes of a trial; BATCH: the first trial of its batch

State = Literal["complete", "pruned", "failed"]
STATES = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
TOLERANCE = 1e-6  # relative, between draws on two machines; different draws differ by far more


@dataclass(frozen=True)
class Trial:
    """A trial to run: values of the space's keys as command-line text."""

    number: int
    values: Mapping[str, str]


@dataclass(frozen=True)
class TrialResult:
    """The result of a trial: the values of the objectives in order, or the reason why it has none.

    `epochs` maps each epoch to the first objective's value after it; `runs` are run ids.
    """

    state: State
    values: tuple[float, ...] = ()
    epochs: Mapping[int, float] = field(default_factory=dict)
    reason: str = ""
    runs: tuple[str, ...] = ()


TrialShouldContinue = Callable[[int, int, float], bool]
"""Whether a trial (by number) continues after an epoch with this value of the first objective."""

RunTrials = Callable[[Sequence[Trial], TrialShouldContinue | None], Sequence[TrialResult]]
"""Runs the trials of a batch, concurrently if possible."""


class _DriftError(Exception):
    """The sampler draws a different trial than the journal has."""


class Search:
    """One search in its folder. Use it as a context manager, which locks out other commands.

    `definition` is what else must be the same each time (plain JSON values); `note` receives messages for the
    user. Raises ConfigError if the folder has a different search, or another command runs it.
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
        self._distributions = {key: distribution_of(dimension) for key, dimension in config.space.items()}
        self._definition = _describe(config) | dict(definition)
        self._directions = list(config.objectives.values())
        self._exit_stack = contextlib.ExitStack()
        optuna.logging.set_verbosity(optuna.logging.ERROR)

    def __enter__(self) -> Search:
        with contextlib.ExitStack() as stack:
            problem = f"another command is running the search {self._name!r}"
            busy = Mistake("study", problem, "wait for it, or another name")
            stack.enter_context(locks.exclusive_lock_or_fail(self._folder / "lock", busy))
            self._journal = self._open()
            self._exit_stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._exit_stack.close()

    @property
    def total(self) -> int:
        """The number of trials, including those of earlier commands."""
        if self.config.sampler != "grid":
            assert self.config.trials is not None
            return self.config.trials
        size = math.prod(map(len, self.config.grid().values()))
        return min(size, self.config.trials or size)

    def trials(self) -> list[FrozenTrial]:
        """All trials so far, from the journal."""
        return self._journal.get_trials(deepcopy=False)

    def best(self) -> list[FrozenTrial]:
        """The best trial, or the Pareto front for several objectives; empty if no trial is complete."""
        if not any(trial.state == TrialState.COMPLETE for trial in self.trials()):
            return []
        return self._journal.best_trials if len(self._directions) > 1 else [self._journal.best_trial]

    def run(self, run_trials: RunTrials, batch_size: int = 1) -> None:
        """Run trials until there are `total`, `batch_size` at a time."""
        try:
            self._run(run_trials, batch_size, forced=False)
        except _DriftError:
            self._note(
                f"search {self._name!r}: Optuna draws other trials here than where the search began; it "
                "continues from the recorded ones, but not as it would have without a break"
            )
            self._run(run_trials, batch_size, forced=True)

    def _run(self, run_trials: RunTrials, batch_size: int, forced: bool) -> None:
        """Run the search from its beginning. `forced`: with the recorded trials, whatever the sampler
        draws."""
        recorded = self.trials()
        memory = self._study(self.config.seed + len(recorded) * forced)
        for trial in recorded if forced else ():
            memory.enqueue_trial(trial.params)
        first = 0
        while first < max(len(recorded), self.total):
            batch = _batch(recorded, first)
            # a batch that an earlier, smaller total cut short is filled up
            size = max(len(batch), min(batch_size, self.total - first))
            drawn = [memory.ask(self._distributions) for _ in range(size)]
            for draw, trial in zip(drawn, batch, strict=False):
                if not _is_same(draw.params, trial.params):
                    raise _DriftError
            for draw in drawn[len(batch) :]:
                self._record(draw, first)
            before = memory.get_trials(deepcopy=False)[:first]
            self._run_batch(self.trials()[first : first + size], before, run_trials)
            recorded = self.trials()
            for draw, trial in zip(drawn, recorded[first : first + size], strict=True):
                record_epochs(draw, trial.intermediate_values, self.config.pruner != "none")
                memory.tell(draw, trial.values if trial.state == TrialState.COMPLETE else None, trial.state)
            first += size

    def _run_batch(
        self, batch: Sequence[FrozenTrial], before: Sequence[FrozenTrial], run_trials: RunTrials
    ) -> None:
        """Run the unfinished trials of a batch, and record their results."""
        todo = [trial for trial in batch if not trial.state.is_finished()]
        if not todo:
            return
        should_continue: TrialShouldContinue | None = None
        if self.config.pruner != "none":
            should_continue = BatchPruner(self._name, self.config, self._epochs, before).should_continue
        trials = [Trial(trial.number, override_texts(trial.params)) for trial in todo]
        for trial, result in zip(trials, run_trials(trials, should_continue), strict=True):
            self._record_result(trial.number, result)

    def _study(self, seed: int) -> Study:
        return optuna.create_study(
            directions=self._directions,
            sampler=sampler_of(self.config, seed),
            pruner=pruner_of(self.config, self._epochs),
            study_name=self._name,
        )

    def _record(self, trial: optuna.Trial, batch: int) -> None:
        """Write a new trial to the journal, with all of its parameters at once."""
        self._journal.add_trial(
            optuna.create_trial(
                state=TrialState.RUNNING,
                params=trial.params,
                distributions=self._distributions,
                user_attrs={BATCH: batch},
            )
        )

    def _record_result(self, number: int, result: TrialResult) -> None:
        """Write the result of a trial to the journal; the last line ends the trial."""
        trial_id = self._storage.get_trial_id_from_study_id_trial_number(self._study_id, number)
        for key, value in ((RUNS, list(result.runs)), (REASON, result.reason)):
            if value:
                self._storage.set_trial_user_attr(trial_id, key, value)
        for epoch, objective in result.epochs.items() if self.config.pruner != "none" else ():
            if not math.isnan(objective):
                self._storage.set_trial_intermediate_value(trial_id, epoch, objective)
        values = list(result.values) if result.state == "complete" else None
        self._storage.set_trial_state_values(trial_id, STATES[result.state], values)

    def _open(self) -> Study:
        """Open the journal, or create it. No other process writes to it, because this one holds the lock."""
        path = self._folder / JOURNAL
        (self._folder / f"{JOURNAL}.lock").unlink(missing_ok=True)  # left by a killed command
        if path.exists():
            _remove_partial_line(path)
        self._storage = JournalStorage(JournalFileBackend(str(path)))
        journal = optuna.create_study(
            storage=self._storage,
            directions=self._directions,
            study_name=self._name,
            sampler=RandomSampler(),
            load_if_exists=True,
        )
        self._study_id = self._storage.get_study_id_from_name(self._name)
        definition = journal.user_attrs.get(DEFINITION)
        if definition is None:  # a new journal
            journal.set_user_attr(DEFINITION, self._definition)
        elif mistakes := _differences(self._name, definition, self._definition):
            raise ConfigError(mistakes)
        return journal


def runs_of(trial: FrozenTrial) -> list[str]:
    """The run ids of a recorded trial; empty for a trial that could not run."""
    return list(trial.user_attrs.get(RUNS, ()))


def _describe(config: SearchConfig) -> dict[str, Any]:
    """What identifies a search, by dotted keys; `trials` is not part of it, because it may grow."""
    plain: dict[str, Any] = {
        "search.sampler": config.sampler,
        "search.seed": config.seed,
        "search.pruner": config.pruner,
        "search.objectives": config.objectives_text(),
    }
    for key, dimension in config.space.items():
        plain[f"search.space.{key}"] = _describe_dimension(dimension)
    return plain


def _describe_dimension(dimension: Dimension) -> str:
    if isinstance(dimension, Span):
        parts = {"low": dimension.low, "high": dimension.high, "step": dimension.step, "log": dimension.log}
        return override_text({key: value for key, value in parts.items() if value not in (None, False)})
    return override_text({"choices": list(dimension.texts)})


def _differences(name: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Mistake]:
    differing = [key for key in dict.fromkeys((*before, *now)) if before.get(key) != now.get(key)]
    return [
        Mistake(
            key,
            f"search {name!r} was begun {_with(before.get(key))}, and this one is {_with(now.get(key))}",
            "the same as before, or another name: study=",
        )
        for key in differing
    ]


def _with(value: object) -> str:
    return "without it" if value is None else f"with {override_text(value)}"


def _batch(recorded: Sequence[FrozenTrial], first: int) -> list[FrozenTrial]:
    """The recorded trials of the batch that begins at index `first`."""
    return [trial for trial in recorded[first:] if trial.user_attrs[BATCH] == first]


def _is_same(drawn: Mapping[str, Any], recorded: Mapping[str, Any]) -> bool:
    def same(one: object, other: object) -> bool:
        if isinstance(one, float) and isinstance(other, float):
            return math.isclose(one, other, rel_tol=TOLERANCE)
        return one == other

    return drawn.keys() == recorded.keys() and all(same(drawn[key], recorded[key]) for key in drawn)


def _remove_partial_line(path: Path) -> None:
    """Remove what a kill during a write left at the end of a journal: Optuna can't read past it."""
    with path.open("r+b") as file:
        text = file.read()
        file.truncate(text.rfind(b"\n") + 1)
