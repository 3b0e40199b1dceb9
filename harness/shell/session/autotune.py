"""`execution=best`: looked up, or measured once before the runs of a sweep are identified.

A run has the execution that was chosen for it, as if it had been asked for by name: the two are one run. So
the choice comes before everything else, in a worker of its own, while nothing else is at work. It is made
once for a command: what other work disturbed is measured again by the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.core.config.checks import BEST
from harness.core.config.run_config import RunConfig
from harness.core.machine.matmul_limits import Device
from harness.core.runs import autotune
from harness.core.runs.autotune import Candidate, TunedExecution
from harness.core.storage.dates import today
from harness.core.validation import ConfigError, Mistake, parse, to_plain
from harness.shell.runs.inputs import DatasetCache
from harness.shell.runs.prepare import prepare
from harness.shell.runs.records import PreparedRun
from harness.shell.workers.key import WorkerKey
from harness.shell.workers.matmul_limits import device_of
from harness.shell.workers.process import Worker, WorkerDiedError


class ExecutionTuner:
    """The executions that the runs of a session have, where it was asked for the best."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note = note
        self._made: dict[tuple[Path, str], TunedExecution] = {}

    def prepare(self, configs: Sequence[RunConfig], shelf: DatasetCache, here: bool) -> list[PreparedRun]:
        """As `harness.shell.runs.prepare.prepare`, which sees the executions that were chosen.

        `here`: the runs go on on this machine. Nothing is measured before everything about them was found to
        be right; raises ConfigError.
        """
        runs = prepare(configs, shelf)
        asking = [run for run in runs if run.config.execution == BEST]
        if not asking:
            return runs
        if not here:
            raise ConfigError(_elsewhere(asking))
        names = {run.job.run_id: _name(run, shelf) for run in asking}
        self._make(asking, names)
        made = [self._made.get((run.results_dir, names.get(run.job.run_id, ""))) for run in runs]
        settled = [_settled(run.config, choice) for run, choice in zip(runs, made, strict=True)]
        return [
            replace(run, job=replace(run.job, calibration=None if choice is None else to_plain(choice)))
            for run, choice in zip(prepare(settled, shelf), made, strict=True)
        ]

    def _make(self, runs: Sequence[PreparedRun], names: Mapping[str, str]) -> None:
        """Make the choices that are not made yet, those for one worker after another."""
        wanted: dict[WorkerKey, dict[tuple[Path, str], PreparedRun]] = {}
        for run in runs:
            key = run.results_dir, names[run.job.run_id]
            if key in self._made:
                continue
            kept = autotune.known(*key)
            executions, xla = autotune.executions(run.config), run.config.framework.xla
            if kept is not None and not kept.disturbed:
                self._made[key] = kept
            elif len(executions) == 1 and xla is not None:
                self._made[key] = _untimed(run, Candidate(executions[0], xla))
            else:
                wanted.setdefault(run.worker, {})[key] = run
        for worker_key, of_worker in wanted.items():
            with _Workers(worker_key) as workers:
                for key, run in of_worker.items():
                    self._made[key] = self._measured(run, key[1], workers.one())

    def _measured(self, run: PreparedRun, name: str, worker: Worker) -> TunedExecution:
        config, words = run.config, _words(run)
        what = f"{words['model']} {words['framework']}"
        self._note(f"finding the fastest execution of {what} (kept for the next time)")
        try:
            said = worker.calibrate(
                {
                    "config": config.to_plain(),
                    "data_file": str(run.results_dir / run.job.data_file),
                    "executions": list(autotune.executions(config)),
                }
            )
            reason = str(said.get("error", ""))
        except WorkerDiedError as error:
            said, reason = {}, str(error)
        candidates = tuple(parse(Candidate, one) for one in said.get("candidates", ()))
        best = autotune.fastest(candidates)
        if best is None:
            reason = reason or "; ".join(f"{one.execution}: {one.reason}" for one in candidates)
            default = Candidate(config.framework.execution, config.framework.xla)
            what = f"{what}: {default.execution} is taken, the default, because none could be timed"
            self._note(f"{what}: {reason}")
            return replace(_untimed(run, default), candidates=candidates, disturbed=(reason,))
        found = TunedExecution(
            words,
            best.execution,
            best.xla,
            candidates,
            said["steps"],
            today(),
            said["load"],
            tuple(said["disturbed"]),
        )
        kept = autotune.keep(run.results_dir, name, _device(run), run.job.versions, found)
        self._note(f"{what}: {described(kept)}")
        return kept


class _Workers:
    """A worker for programs one after another, and another one where it died over one of them."""

    def __init__(self, key: WorkerKey) -> None:
        self._key = key
        self._worker: Worker | None = None

    def one(self) -> Worker:
        """The worker, alive."""
        if self._worker is not None and not self._worker.alive:
            self._worker.close()
            self._worker = None
        self._worker = self._worker or Worker(self._key)
        return self._worker

    def __enter__(self) -> _Workers:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if self._worker is not None:
            self._worker.close(kill=kind is not None)


def _untimed(run: PreparedRun, only: Candidate) -> TunedExecution:
    return TunedExecution(_words(run), only.execution, only.xla, (only,), 0, today(), 0.0)


def described(choice: TunedExecution) -> str:
    """A choice in words, the fastest first."""
    parts = [f"{label(one, choice)} {one.step_ms:.3g} ms a step" for one in choice.ranked]
    parts += [f"{label(one, choice)} left out ({one.reason})" for one in choice.candidates if one.reason]
    beside = ", with other work beside it" if choice.disturbed else ""
    return f"{label(choice, choice)} is chosen: {', '.join(parts)}{beside}"


def label(one: Candidate | TunedExecution, choice: TunedExecution) -> str:
    """An execution, and XLA where that was switched on or off for the choice."""
    switched = one.xla is not None and any(other.xla is None for other in choice.candidates)
    return f"{one.execution} xla={str(one.xla).lower()}" if switched else one.execution


def _elsewhere(runs: Iterable[PreparedRun]) -> list[Mistake]:
    """What is wrong with runs that ask for the best execution, and go on on other machines."""
    problem = "'best' is measured on this machine, and the runs go to others"
    allowed = {run.config.framework.name: ", ".join(autotune.executions(run.config)) for run in runs}
    return [Mistake("execution", problem, "; ".join(f"{name}: {each}" for name, each in allowed.items()))]


def _settled(config: RunConfig, choice: TunedExecution | None) -> RunConfig:
    if choice is None:
        return config
    framework = replace(config.framework, xla=choice.xla)
    return replace(config, execution=choice.execution, framework=framework)


def _name(run: PreparedRun, shelf: DatasetCache) -> str:
    dataset = shelf.get(run.config.data, run.results_dir)[0]
    return autotune.identity(_device(run), run.config, run.config.plan(dataset), run.job.versions)


def _device(run: PreparedRun) -> Device:
    return device_of(run.config.framework, run.config.device)


def _words(run: PreparedRun) -> dict[str, Any]:
    """What people call the program."""
    config = run.config
    return {
        "model": config.model.name,
        "framework": config.framework.name,
        "data": config.data.name,
        "optimizer": config.optimizer.name,
        "batch_size": config.train.batch_size,
        "precision": config.precision,
        "threads": config.threads,
        "device": config.device,
    }
