"""The command itself: look at everything in turn, show it, and say by the exit status whether it is well."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from harness.core.machine.noise import Noise
from harness.core.runs import autotune
from harness.core.validation import to_plain
from harness.shell.doctor.findings import DeviceLimit, Findings, FrameworkState, Problem
from harness.shell.doctor.frameworks import examine, missing_extras
from harness.shell.doctor.host import host, storage
from harness.shell.doctor.report import print_findings
from harness.shell.doctor.timings import measure_limits, measure_noise, verdict
from harness.shell.environment.frameworks import frameworks
from harness.shell.environment.versions import project_version
from harness.shell.reports.tables import screen
from harness.shell.workers import matmul_limits


def doctor_command(results_dir: Path, folders: Sequence[Path], as_json: bool, again: bool) -> int:
    """Examine and print; 0 if nothing is broken, else 1. Raises ConfigError for folders it can't read."""
    console = Console(stderr=True, highlight=False)
    found = findings(results_dir, folders, again, lambda text: console.print(text, markup=False))
    if as_json:
        plain = to_plain(found)
        if found.noise is not None:
            plain["noise"] |= {"quiet": found.noise.quiet, "verdict": verdict(found.noise)}
        print(json.dumps(plain | {"well": found.well}, indent=1))
    else:
        print_findings(found, screen())
    return 0 if found.well else 1


def findings(
    results_dir: Path, folders: Sequence[Path], again: bool, tell: Callable[[str], None]
) -> Findings:
    """Look at everything; what is timed comes last, when nothing else of ours is at work."""
    known = list(frameworks(folders).values())
    here, problems = host()
    stored, found = storage(results_dir)
    problems += found
    states: list[FrameworkState] = []
    for framework in known:
        tell(f"importing {framework.name}")
        state, found = examine(framework, bool(here.cards))
        states.append(state)
        problems += found
    working = matmul_limits.measurers(f for f, state in zip(known, states, strict=True) if state.works)
    measured: list[DeviceLimit] = []
    noise: Noise | None = None
    if not working:
        commands = dict.fromkeys(state.install for state in states if state.install)
        problems.append(Problem("no framework works", "; or ".join(commands), broken=True))
    else:
        tell("measuring the noise")
        noise, found = measure_noise(working[0])
        problems += found
        if stored.writable:
            cards = [f"cuda:{number}" if number else "cuda" for number in range(len(here.cards))]
            measured, found = measure_limits(results_dir, working, ["cpu", *cards], again, tell)
            problems += found
    return Findings(
        version=project_version(),
        python=platform.python_version(),
        frameworks=tuple(states),
        extras=missing_extras(bool(here.cards)),
        host=here,
        limits=tuple(measured),
        choices=tuple(autotune.all_known(results_dir)),
        noise=noise,
        storage=stored,
        problems=tuple(problems),
    )
