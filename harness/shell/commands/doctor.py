"""`evenbench doctor`: what is installed, which devices exist, how fast and how steady the machine is."""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from harness.core.machine.noise import Noise
from harness.core.runs import autotune
from harness.core.validation import to_plain
from harness.shell.commands.parser import Parser, Subcommand
from harness.shell.doctor.findings import DeviceLimit, Findings, FrameworkState, Problem
from harness.shell.doctor.frameworks import examine, missing_extras
from harness.shell.doctor.host import host, storage
from harness.shell.doctor.report import print_findings
from harness.shell.doctor.timings import measure_limits, measure_noise, verdict
from harness.shell.environment.frameworks import conf_folder, frameworks
from harness.shell.environment.versions import project_version
from harness.shell.reports.tables import screen
from harness.shell.workers import matmul_limits

EXAMPLES = """\
  evenbench doctor
  evenbench doctor --again --json
  evenbench doctor --config-dir my_conf            also check the frameworks of your own folder"""


def _options(parser: Parser) -> None:
    own = "also check the frameworks of this folder"
    parser.add_argument("--config-dir", type=Path, metavar="DIR", help=own)
    parser.add_argument("--again", action="store_true", help="repeat measurements that exist")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def _run(options: argparse.Namespace) -> int:
    """Examine and print; returns 1 if something is broken. Raises ConfigError for unreadable folders."""
    folders = [conf_folder(), *([options.config_dir] if options.config_dir else [])]
    console = Console(stderr=True, highlight=False)
    report = findings(
        options.results_dir.resolve(), folders, options.again, lambda text: console.print(text, markup=False)
    )
    if options.json:
        plain = to_plain(report)
        if report.noise is not None:
            plain["noise"] |= {"quiet": report.noise.quiet, "verdict": verdict(report.noise)}
        print(json.dumps(plain | {"well": report.well}, indent=1))
    else:
        print_findings(report, screen())
    return 0 if report.well else 1


def findings(
    results_dir: Path, folders: Sequence[Path], again: bool, note: Callable[[str], None]
) -> Findings:
    """Examine everything; timings come last, when no other worker of this command is running."""
    configured = list(frameworks(folders).values())
    machine, problems = host()
    store, store_problems = storage(results_dir)
    problems += store_problems
    states: list[FrameworkState] = []
    for framework in configured:
        note(f"importing {framework.name}")
        state, framework_problems = examine(framework, bool(machine.cards))
        states.append(state)
        problems += framework_problems
    pairs = zip(configured, states, strict=True)
    working = matmul_limits.measuring_frameworks(framework for framework, state in pairs if state.works)
    limits: list[DeviceLimit] = []
    noise: Noise | None = None
    if not working:
        commands = dict.fromkeys(state.install for state in states if state.install)
        problems.append(Problem("no framework works", "; or ".join(commands), broken=True))
    else:
        note("measuring the noise")
        noise, noise_problems = measure_noise(working[0])
        problems += noise_problems
        if store.writable:
            cards = [f"cuda:{number}" if number else "cuda" for number in range(len(machine.cards))]
            limits, limit_problems = measure_limits(results_dir, working, ["cpu", *cards], again, note)
            problems += limit_problems
    return Findings(
        version=project_version(),
        python=platform.python_version(),
        frameworks=tuple(states),
        extras=missing_extras(bool(machine.cards)),
        host=machine,
        limits=tuple(limits),
        choices=tuple(autotune.read_all(results_dir)),
        noise=noise,
        storage=store,
        problems=tuple(problems),
    )


COMMAND = Subcommand(
    name="doctor",
    summary="Check what is installed, which devices exist, and how fast and steady the machine is.",
    examples=EXAMPLES,
    run=_run,
    options=_options,
)
