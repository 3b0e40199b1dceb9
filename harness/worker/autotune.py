"""Time a step in each execution: a few epochs of each in turn, outside of any run.

The programs compiled here are discarded, so that a run's own figures (its compilations, its peak memory) do
not depend on whether its execution was tuned just before or long ago.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from harness.core.adapter import Adapter, Epoch, Examples, Execution, Plan, Program, Trainer
from harness.core.config.run_config import RunConfig
from harness.core.data.dataset import Dataset, open_dataset
from harness.core.machine import host, statistics, timing
from harness.core.network import initialisers
from harness.core.runs import autotune
from harness.core.training.batches import batch_order
from harness.core.validation import ConfigError, to_plain
from harness.worker.events import Emit

PER_CANDIDATE_S = 1.5
MIN_EPOCHS, MAX_EPOCHS = 5, 100  # per candidate


@dataclass
class _TimedCandidate:
    """A candidate that was built, with its timings; `fault` says why it stopped working."""

    execution: Execution
    xla: bool | None
    program: Program
    trainer: Trainer
    first_s: float
    readings: list[timing.ClockReading] = field(default_factory=list)
    fault: str = ""


def time_executions(command: Mapping[str, Any], adapter: Adapter, emit: Emit) -> None:
    """Execute an `autotune` task: a run's `config`, its `data_file`, and the `executions` to try.

    If the run leaves XLA to the adapter, each execution is tried with and without it. The event has the
    `candidates`, the `steps` per epoch, the `load` average at the start and the reasons why the times are
    `disturbed`, or an `error` message.
    """
    event: dict[str, Any] = {"event": "autotuned"}
    try:
        config = RunConfig.parse(command["config"])
        dataset = config.model.view(open_dataset(Path(command["data_file"])))
        event |= _Autotuner(config, dataset, adapter).run(command["executions"])
    except Exception as error:
        traceback.print_exc()
        event["error"] = f"{type(error).__name__}: {error}"
    emit(event)
    emit({"event": "ended"})


class _Autotuner:
    def __init__(self, config: RunConfig, dataset: Dataset, adapter: Adapter) -> None:
        self._config = config
        self._adapter = adapter
        self._plan = autotune.trial_plan(config.plan(dataset))
        rows = self._plan.rows[0]
        x, y = dict(dataset.x), dict(dataset.y)
        lengths = dict(dataset.lengths) if dataset.lengths else None
        for part in filter(None, (x, y, lengths)):
            part["train"] = part["train"][:rows]
        self._examples = Examples(x, y, lengths)
        # with a learning rate of 0 the weights stay constant, and so does the speed of their arithmetic
        self._rates = np.zeros(self._plan.steps)
        self._failed: list[autotune.Candidate] = []

    def run(self, executions: list[Execution]) -> dict[str, Any]:
        """Build all candidates, then time them in turn."""
        load = timing.load_average()
        candidates: list[_TimedCandidate] = []
        xla = self._config.framework.xla
        for execution in executions:
            first = self._build(execution, xla)
            candidates += [first] if first else []
            if first and xla is None and isinstance(default := first.program.settings().get("xla"), bool):
                other = self._build(execution, not default)
                candidates += [other] if other else []
        ticks, start = host.ticks(), timing.ClockReading.now()
        self._time_in_turn(candidates)
        steal = host.steal_since(ticks)
        readings = [reading for candidate in candidates for reading in candidate.readings]
        sums = sum(each.wall_s for each in readings), sum(each.cpu_s for each in readings)
        computes = self._plan.device == "cpu"
        return {
            "candidates": to_plain([*map(self._result, candidates), *self._failed]),
            "steps": self._plan.steps,
            "load": load,
            "disturbed": timing.disturbances(*sums, steal, computes),
            "seconds": timing.ClockReading.now().since(start).wall_s,
        }

    def _build(self, execution: Execution, xla: bool | None) -> _TimedCandidate | None:
        """A candidate after its first epoch, which compiles; a failure is recorded and returns None."""
        plan = replace(self._plan, execution=execution, xla=xla)
        try:
            program = self._adapter.build(plan)
            trainer = program.trainer(self._examples, self._config.optimizer, self._config.seed)
            trainer.load(initialisers.initialise(plan.network.params(), self._config.seed, plan.dtype))
            candidate = _TimedCandidate(execution, xla, program, trainer, 0.0)
            candidate.first_s = self._epoch(candidate, 0).wall_s
        except Exception as error:
            traceback.print_exc()
            self._failed.append(autotune.Candidate(execution, xla, reason=_reason(error)))
            return None
        return candidate

    def _time_in_turn(self, candidates: list[_TimedCandidate]) -> None:
        spent, epoch = 0.0, 0
        while epoch < MIN_EPOCHS or (epoch < MAX_EPOCHS and spent < PER_CANDIDATE_S * len(candidates)):
            epoch += 1
            for candidate in candidates[:: 1 if epoch % 2 else -1]:
                if candidate.fault:
                    continue
                try:
                    candidate.readings.append(self._epoch(candidate, epoch))
                except Exception as error:
                    traceback.print_exc()
                    candidate.fault = _reason(error)
                    continue
                spent += candidate.readings[-1].wall_s

    def _epoch(self, candidate: _TimedCandidate, epoch: int) -> timing.ClockReading:
        plan: Plan = self._plan
        order = batch_order(self._config.seed, epoch, plan.rows[0], plan.batch_size)
        candidate.trainer.sync()
        start = timing.ClockReading.now()
        candidate.trainer.train([Epoch(order, self._rates)])
        candidate.trainer.sync()
        return timing.ClockReading.now().since(start)

    def _result(self, candidate: _TimedCandidate) -> autotune.Candidate:
        execution, xla = candidate.execution, candidate.xla
        if candidate.fault:
            return autotune.Candidate(execution, xla, reason=candidate.fault)
        epoch_s = statistics.median([each.wall_s for each in candidate.readings])
        compile_s = max(0.0, candidate.first_s - epoch_s)
        return autotune.Candidate(execution, xla, 1000 * epoch_s / self._plan.steps, compile_s)


def _reason(error: Exception) -> str:
    """An error in one line."""
    if isinstance(error, ConfigError):
        return "; ".join(mistake.problem for mistake in error.mistakes)
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
