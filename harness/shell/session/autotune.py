"""`execution=best`: the fastest execution of a program, read from the results folder or measured once.

A run gets the execution that was found, as if the user had named it: the two are one run. So tuning comes
before runs are identified, in a worker of its own, while nothing else runs. A measurement that other work
disturbed is repeated by the next command.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.core.config.checks import BEST
from harness.core.machine.matmul_limits import Device
from harness.core.runs import autotune
from harness.core.runs.autotune import Candidate, TunedExecution
from harness.core.storage.dates import today
from harness.core.validation import ConfigError, Mistake, parse
from harness.shell.runs.inputs import RunInputs
from harness.shell.runs.prepare import with_execution
from harness.shell.runs.records import PreparedRun
from harness.shell.workers.key import WorkerKey
from harness.shell.workers.matmul_limits import describe_device
from harness.shell.workers.process import Worker, WorkerDiedError


class ExecutionTuner:
    """Finds the fastest execution for runs that request `execution=best`."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note = note
        self._tuned: dict[tuple[Path, str], TunedExecution] = {}

    def tune(self, runs: Sequence[PreparedRun], inputs: RunInputs, local: bool) -> list[PreparedRun]:
        """The runs with their tuned executions in place of `best`; measures those that are not stored.

        `local`: the runs execute on this machine; elsewhere `best` is refused with a ConfigError.
        """
        requests = [run for run in runs if run.config.execution == BEST]
        if requests and not local:
            raise ConfigError(_remote_mistakes(requests))
        keys = {run.job.run_id: (run.results_dir, _identity(run)) for run in requests}
        self._find(requests, keys)
        return [
            with_execution(run, self._tuned[keys[run.job.run_id]], inputs) if run.job.run_id in keys else run
            for run in runs
        ]

    def _find(self, runs: Sequence[PreparedRun], keys: Mapping[str, tuple[Path, str]]) -> None:
        """Read or measure the executions that are still unknown, one worker after another."""
        unknown: dict[WorkerKey, dict[tuple[Path, str], PreparedRun]] = {}
        for run in runs:
            key = keys[run.job.run_id]
            if key in self._tuned:
                continue
            stored = autotune.read(*key)
            executions, xla = autotune.executions(run.config), run.config.framework.xla
            if stored is not None and not stored.disturbed:
                self._tuned[key] = stored
            elif len(executions) == 1 and xla is not None:
                self._tuned[key] = _untimed(run, Candidate(executions[0], xla))
            else:
                unknown.setdefault(run.worker, {})[key] = run
        for worker_key, requests in unknown.items():
            with _Workers(worker_key) as workers:
                for key, run in requests.items():
                    self._tuned[key] = self._measure(run, key[1], workers.one())

    def _measure(self, run: PreparedRun, identity: str, worker: Worker) -> TunedExecution:
        config, program = run.config, _program(run)
        name = f"{program['model']} {program['framework']}"
        self._note(f"finding the fastest execution of {name} (stored for the next time)")
        try:
            reply = worker.autotune(
                {
                    "config": config.to_plain(),
                    "data_file": str(run.results_dir / run.job.data_file),
                    "executions": list(autotune.executions(config)),
                }
            )
            reason = str(reply.get("error", ""))
        except WorkerDiedError as error:
            reply, reason = {}, str(error)
        candidates = tuple(parse(Candidate, plain) for plain in reply.get("candidates", ()))
        best = autotune.fastest(candidates)
        if best is None:
            reason = reason or "; ".join(f"{one.execution}: {one.reason}" for one in candidates)
            default = Candidate(config.framework.execution, config.framework.xla)
            problem = f"using the default execution {default.execution}, because none could be timed"
            self._note(f"{name}: {problem}: {reason}")
            return replace(_untimed(run, default), candidates=candidates, disturbed=(reason,))
        measured = TunedExecution(
            program,
            best.execution,
            best.xla,
            candidates,
            reply["steps"],
            today(),
            reply["load"],
            tuple(reply["disturbed"]),
        )
        stored = autotune.store(run.results_dir, identity, _device(run), run.job.versions, measured)
        self._note(f"{name}: {described(stored)}")
        return stored


class _Workers:
    """A worker for several programs in turn, replaced if one of them killed it."""

    def __init__(self, key: WorkerKey) -> None:
        self._key = key
        self._worker: Worker | None = None

    def one(self) -> Worker:
        """The worker, started again if it died."""
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
    return TunedExecution(_program(run), only.execution, only.xla, (only,), 0, today(), 0.0)


def described(choice: TunedExecution) -> str:
    """The executions in words, the fastest first."""
    parts = [f"{label(one, choice)} {one.step_ms:.3g} ms a step" for one in choice.ranked]
    parts += [f"{label(one, choice)} left out ({one.reason})" for one in choice.candidates if one.reason]
    disturbed = ", disturbed by other work" if choice.disturbed else ""
    return f"{label(choice, choice)} is the fastest: {', '.join(parts)}{disturbed}"


def label(one: Candidate | TunedExecution, choice: TunedExecution) -> str:
    """An execution, and XLA where that was switched on or off for the choice."""
    switched = one.xla is not None and any(other.xla is None for other in choice.candidates)
    return f"{one.execution} xla={str(one.xla).lower()}" if switched else one.execution


def _remote_mistakes(runs: Iterable[PreparedRun]) -> list[Mistake]:
    """Why runs that execute on other machines can't request the best execution."""
    problem = "'best' is measured on this machine, and the runs execute on others"
    allowed = {run.config.framework.name: ", ".join(autotune.executions(run.config)) for run in runs}
    return [Mistake("execution", problem, "; ".join(f"{name}: {each}" for name, each in allowed.items()))]


def _identity(run: PreparedRun) -> str:
    return autotune.identity(_device(run), run.config, run.plan, run.job.versions)


def _device(run: PreparedRun) -> Device:
    return describe_device(run.config.framework, run.config.device)


def _program(run: PreparedRun) -> dict[str, Any]:
    """The program in the user's terms."""
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
