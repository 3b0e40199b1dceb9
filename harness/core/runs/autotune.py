"""Which execution is the fastest for a program on this machine: what was measured, and what follows from it.

A choice is kept in the results folder, in a file that is named after all that it depends on: the machine, the
versions, the program, its threads. So the runs of different days have the same execution, and are the same
runs. What was measured beside other work is measured again, and then each candidate keeps the shorter of its
times, since other work only ever makes them longer; the choice passes to another one that is clearly faster.
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
"""Not tried: the same steps as `eager` or `compiled`, with more around each."""
MOST_STEPS = 64  # of an epoch while it is tried
TURN_S = 0.2  # of a candidate's epoch, about
GFLOPS = {"cpu": 10.0, "cuda": 1000.0}
"""How fast a device is taken to be when the steps of such an epoch are counted: one with few more to come."""
CLEARLY = 0.95  # of the chosen one's time: who needs less takes its place when it is measured again


@dataclass(frozen=True)
class Candidate:
    """An execution, with `framework.xla` as it would be asked for, and its median step.

    `compile_s` is what its first epoch took beyond a later one. One that failed has a `reason` and no times.
    """

    execution: Execution
    xla: bool | None
    step_ms: float | None = None
    compile_s: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class TunedExecution:
    """The fastest of some candidates, which are timed in steady epochs of `steps` steps.

    `program` says in words what was measured. `disturbed` says why the times may be too long.
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
        """The candidates that were timed, the fastest first."""
        timed = (one for one in self.candidates if one.step_ms is not None)
        return tuple(sorted(timed, key=lambda one: one.step_ms or 0.0))


@dataclass(frozen=True)
class _StoredExecution:
    device: Device
    versions: dict[str, str]
    choice: TunedExecution


def executions(config: RunConfig) -> tuple[Execution, ...]:
    """What there is to choose from on the run's device: all but the tutorial's loop, if there is another."""
    known = config.framework.executions
    possible = known.get(config.device.partition(":")[0]) or known["cpu"]
    return tuple(one for one in possible if one != TUTORIAL) or possible


def short(plan: Plan) -> Plan:
    """The plan on so few rows that an epoch takes no longer than `TURN_S`, about."""
    step_s = 3 * plan.network.flops() * plan.batch_size / GFLOPS[plan.device] / 1e9
    steps = min(plan.steps, MOST_STEPS, max(1, int(TURN_S / step_s)))
    return replace(plan, steps=steps, rows=(steps * plan.batch_size, *plan.rows[1:]))


def identity(device: Device, config: RunConfig, plan: Plan, versions: dict[str, str]) -> str:
    """12 hex digits: the name of the choice's file. `plan` is any of the run's, whichever its execution."""
    neutral = replace(short(plan), execution=TUTORIAL, rows=(0, 0, 0))
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
    """The one with the shortest step, None where none worked."""
    timed = [one for one in candidates if one.step_ms is not None]
    return min(timed, key=lambda one: one.step_ms or 0.0, default=None)


def known(results_dir: Path, identifier: str) -> TunedExecution | None:
    """The choice that is kept, None where there is none."""
    return _read(_folder(results_dir) / f"{identifier}.json")


def all_known(results_dir: Path) -> list[TunedExecution]:
    """All choices of a results folder, of other machines and versions too."""
    found = (_read(path) for path in sorted(_folder(results_dir).glob("*.json")))
    return [choice for choice in found if choice is not None]


def keep(
    results_dir: Path, identifier: str, device: Device, versions: dict[str, str], found: TunedExecution
) -> TunedExecution:
    """Keep a choice, together with what was measured before; returns what is kept."""
    before = known(results_dir, identifier)
    kept = found if before is None else _together(before, found)
    path = _folder(results_dir) / f"{identifier}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, to_plain(_StoredExecution(device, versions, kept)))
    return kept


def _together(before: TunedExecution, found: TunedExecution) -> TunedExecution:
    old = {(one.execution, one.xla): one for one in before.ranked}
    candidates = tuple(_better(one, old.get((one.execution, one.xla))) for one in found.candidates)
    best = fastest(candidates)
    assert best is not None and best.step_ms is not None, "what no candidate can do is not kept"
    chosen = next((o for o in candidates if (o.execution, o.xla) == (before.execution, before.xla)), None)
    stays = chosen is not None and chosen.step_ms is not None and best.step_ms > CLEARLY * chosen.step_ms
    of = chosen if stays and chosen is not None else best
    return replace(found, execution=of.execution, xla=of.xla, candidates=candidates)


def _better(one: Candidate, other: Candidate | None) -> Candidate:
    if other is None or other.step_ms is None:
        return one
    return other if one.step_ms is None or other.step_ms < one.step_ms else one


def _read(path: Path) -> TunedExecution | None:
    # a file that can't be read is as good as none: what it said is measured anew and it is replaced
    with contextlib.suppress(ConfigError, ValueError):
        plain = read_json(path)
        return parse(_StoredExecution, plain).choice if plain is not None else None
    return None


def _folder(results_dir: Path) -> Path:
    return results_dir / "machine" / "executions"
