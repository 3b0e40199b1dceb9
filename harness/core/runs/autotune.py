"""Autotuning: select the fastest execution of a program on this machine, and store it.

The tuned execution is stored in the results folder, in a file named after everything that it depends on: the
machine, the versions, the program, its threads. Runs of different days therefore use the same execution and
have the same run ids. A disturbed measurement is repeated later. Each candidate then keeps the shorter of its
times, since other work only makes them longer, and another candidate replaces the stored one only if it is
clearly faster.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.core.adapter import Execution, Plan
from harness.core.config.run_config import RunConfig
from harness.core.machine.matmul_limits import Device
from harness.core.storage.digest import digest
from harness.core.storage.json_files import read_json, write_json
from harness.core.validation import ConfigError, parse, to_plain

TUTORIAL: Execution = "idiomatic"
"""Not a candidate: the same steps as `eager` or `compiled`, with more overhead around each."""
MAX_TRIAL_STEPS = 64
TRIAL_EPOCH_S = 0.2  # approximate length of a trial epoch
ASSUMED_GFLOPS = {"cpu": 10.0, "cuda": 1000.0}
"""Assumed GFLOP/s per device, used to size a trial epoch. Deliberately low, so that trial epochs stay
short."""
REPLACEMENT_RATIO = 0.95  # a candidate replaces the stored one if its step takes less than this share of time


@dataclass(frozen=True)
class Candidate:
    """An execution, with the value of `framework.xla` that selects it, and its median step time.

    `compile_s` is how much longer its first epoch took than a later one. A candidate that failed has a
    `reason` and no times.
    """

    execution: Execution
    xla: bool | None
    step_ms: float | None = None
    compile_s: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class TunedExecution:
    """The fastest of some candidates, which were timed in warm epochs of `steps` steps.

    `program` describes what was measured. `disturbed` lists why the times may be too long.
    """

    program: dict[str, Any]
    execution: Execution
    xla: bool | None
    candidates: tuple[Candidate, ...]
    steps: int
    measured: str
    load: float
    disturbed: tuple[str, ...] = ()

    @property
    def ranked(self) -> tuple[Candidate, ...]:
        """The timed candidates, the fastest first."""
        timed = (each for each in self.candidates if each.step_ms is not None)
        return tuple(sorted(timed, key=lambda each: each.step_ms or 0.0))


@dataclass(frozen=True)
class _StoredExecution:
    device: Device
    versions: dict[str, str]
    choice: TunedExecution  # a key of the file


def executions(config: RunConfig) -> tuple[Execution, ...]:
    """Return the candidates on the run's device: all executions but `idiomatic`, unless it is the only
    one."""
    by_device = config.framework.executions
    possible = by_device.get(config.device.partition(":")[0]) or by_device["cpu"]
    return tuple(execution for execution in possible if execution != TUTORIAL) or possible


def trial_plan(plan: Plan) -> Plan:
    """Return the plan with so few rows that an epoch takes about `TRIAL_EPOCH_S` at most."""
    step_s = 3 * plan.network.flops() * plan.batch_size / ASSUMED_GFLOPS[plan.device] / 1e9
    steps = min(plan.steps, MAX_TRIAL_STEPS, max(1, int(TRIAL_EPOCH_S / step_s)))
    return replace(plan, steps=steps, rows=(steps * plan.batch_size, *plan.rows[1:]))


def identity(device: Device, config: RunConfig, plan: Plan, versions: dict[str, str]) -> str:
    """Return 12 hex digits: the name of the file. The execution of `plan` does not matter."""
    neutral = replace(trial_plan(plan), execution=TUTORIAL, rows=(0, 0, 0))
    framework = config.framework
    parts = {
        "device": to_plain(device),
        "framework": [framework.adapter, framework.backend, sorted(map(str, framework.env.items()))],
        "executions": executions(config),
        "plan": repr(neutral),
        "threads": config.threads,
        "versions": versions,
    }
    return digest(parts, 12)


def fastest(candidates: Iterable[Candidate]) -> Candidate | None:
    """Return the candidate with the shortest step; None if all failed."""
    timed = [each for each in candidates if each.step_ms is not None]
    return min(timed, key=lambda each: each.step_ms or 0.0, default=None)


def read(results_dir: Path, identifier: str) -> TunedExecution | None:
    """Read the stored execution; None if there is none."""
    return _read_file(_folder(results_dir) / f"{identifier}.json")


def read_all(results_dir: Path) -> list[TunedExecution]:
    """Read all tuned executions of a results folder, including those of other machines and versions."""
    stored = (_read_file(path) for path in sorted(_folder(results_dir).glob("*.json")))
    return [each for each in stored if each is not None]


def store(
    results_dir: Path, identifier: str, device: Device, versions: dict[str, str], measured: TunedExecution
) -> TunedExecution:
    """Store a measured execution, merged with an earlier measurement; return what is stored."""
    earlier = read(results_dir, identifier)
    merged = measured if earlier is None else _merge(earlier, measured)
    path = _folder(results_dir) / f"{identifier}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, to_plain(_StoredExecution(device, versions, merged)))
    return merged


def _merge(earlier: TunedExecution, measured: TunedExecution) -> TunedExecution:
    earlier_times = {(each.execution, each.xla): each for each in earlier.ranked}
    candidates = tuple(
        _faster(each, earlier_times.get((each.execution, each.xla))) for each in measured.candidates
    )
    best = fastest(candidates)
    assert best is not None and best.step_ms is not None, "without a timed candidate nothing is stored"
    selected = best
    for each in candidates:
        is_stored = (each.execution, each.xla) == (earlier.execution, earlier.xla)
        if is_stored and each.step_ms is not None and best.step_ms > REPLACEMENT_RATIO * each.step_ms:
            selected = each
    return replace(measured, execution=selected.execution, xla=selected.xla, candidates=candidates)


def _faster(new: Candidate, earlier: Candidate | None) -> Candidate:
    if earlier is None or earlier.step_ms is None:
        return new
    return earlier if new.step_ms is None or earlier.step_ms < new.step_ms else new


def _read_file(path: Path) -> TunedExecution | None:
    # an unreadable file counts as missing: the candidates are measured again and it is replaced
    with contextlib.suppress(ConfigError, ValueError):
        plain = read_json(path)
        return parse(_StoredExecution, plain).choice if plain is not None else None
    return None


def _folder(results_dir: Path) -> Path:
    return results_dir / "machine" / "executions"
