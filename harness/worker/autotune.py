"""How long a step takes in each execution: a few epochs of each by turns, outside of any run.

What is compiled here is thrown away, so that a run's own figures (what it compiled, its peak of memory) don't
depend on whether its execution was chosen just now or long ago.
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
FEWEST, MOST = 5, 100  # epochs of each


@dataclass
class _Side:
    """A candidate that works so far; `fault` is why it does not any more."""

    execution: Execution
    xla: bool | None
    program: Program
    trainer: Trainer
    first_s: float
    taken: list[timing.ClockReading] = field(default_factory=list)
    fault: str = ""


def answer(command: Mapping[str, Any], adapter: Adapter, emit: Emit) -> None:
    """Carry out a command: `config` is a run's, `data_file` the path of its data, `executions` what to try.

    Where the run leaves XLA to the adapter, each execution is tried with and without it. The event has the
    `candidates`, the `steps` of an epoch, the `load` at the start and why the times are `disturbed`, or an
    `error` in words.
    """
    event: dict[str, Any] = {"event": "calibrated"}
    try:
        config = RunConfig.parse(command["config"])
        dataset = config.model.view(open_dataset(Path(command["data_file"])))
        event |= _Calibration(config, dataset, adapter).run(command["executions"])
    except Exception as error:
        traceback.print_exc()
        event["error"] = f"{type(error).__name__}: {error}"
    emit(event)
    emit({"event": "ended"})


class _Calibration:
    def __init__(self, config: RunConfig, dataset: Dataset, adapter: Adapter) -> None:
        self._config = config
        self._adapter = adapter
        self._plan = autotune.short(config.plan(dataset))
        rows = self._plan.rows[0]
        x, y = dict(dataset.x), dict(dataset.y)
        lengths = dict(dataset.lengths) if dataset.lengths else None
        for part in filter(None, (x, y, lengths)):
            part["train"] = part["train"][:rows]
        self._examples = Examples(x, y, lengths)
        # at a rate of 0 the weights stay what they are, and with them how fast their numbers are
        self._rates = np.zeros(self._plan.steps)
        self._failed: list[autotune.Candidate] = []

    def run(self, executions: list[Execution]) -> dict[str, Any]:
        """Build all, then let them take turns."""
        load = timing.load_average()
        sides: list[_Side] = []
        asked = self._config.framework.xla
        for execution in executions:
            first = self._side(execution, asked)
            sides += [first] if first else []
            if first and asked is None and isinstance(used := first.program.settings().get("xla"), bool):
                other = self._side(execution, not used)
                sides += [other] if other else []
        ticks, start = host.ticks(), timing.ClockReading.now()
        self._take_turns(sides)
        steal = host.steal_since(ticks)
        taken = [reading for side in sides for reading in side.taken]
        sums = sum(each.wall_s for each in taken), sum(each.cpu_s for each in taken)
        computes = self._plan.device == "cpu"
        return {
            "candidates": to_plain([*map(self._candidate, sides), *self._failed]),
            "steps": self._plan.steps,
            "load": load,
            "disturbed": timing.disturbances(*sums, steal, computes),
            "seconds": timing.ClockReading.now().since(start).wall_s,
        }

    def _side(self, execution: Execution, xla: bool | None) -> _Side | None:
        """A candidate after its first epoch, which compiles; None for one that fails, which is noted."""
        plan = replace(self._plan, execution=execution, xla=xla)
        try:
            program = self._adapter.build(plan)
            trainer = program.trainer(self._examples, self._config.optimizer, self._config.seed)
            trainer.load(initialisers.initialise(plan.network.params(), self._config.seed, plan.dtype))
            side = _Side(execution, xla, program, trainer, 0.0)
            side.first_s = self._epoch(side, 0).wall_s
        except Exception as error:
            traceback.print_exc()
            self._failed.append(autotune.Candidate(execution, xla, reason=_reason(error)))
            return None
        return side

    def _take_turns(self, sides: list[_Side]) -> None:
        spent, epoch = 0.0, 0
        while epoch < FEWEST or (epoch < MOST and spent < PER_CANDIDATE_S * len(sides)):
            epoch += 1
            for side in sides[:: 1 if epoch % 2 else -1]:
                if side.fault:
                    continue
                try:
                    side.taken.append(self._epoch(side, epoch))
                except Exception as error:
                    traceback.print_exc()
                    side.fault = _reason(error)
                    continue
                spent += side.taken[-1].wall_s

    def _epoch(self, side: _Side, epoch: int) -> timing.ClockReading:
        plan: Plan = self._plan
        order = batch_order(self._config.seed, epoch, plan.rows[0], plan.batch_size)
        side.trainer.sync()
        start = timing.ClockReading.now()
        side.trainer.train([Epoch(order, self._rates)])
        side.trainer.sync()
        return timing.ClockReading.now().since(start)

    def _candidate(self, side: _Side) -> autotune.Candidate:
        if side.fault:
            return autotune.Candidate(side.execution, side.xla, reason=side.fault)
        epoch_s = statistics.median([each.wall_s for each in side.taken])
        compile_s = max(0.0, side.first_s - epoch_s)
        return autotune.Candidate(side.execution, side.xla, 1000 * epoch_s / self._plan.steps, compile_s)


def _reason(error: Exception) -> str:
    """In one line."""
    if isinstance(error, ConfigError):
        return "; ".join(mistake.problem for mistake in error.mistakes)
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[0]}" if said else type(error).__name__
