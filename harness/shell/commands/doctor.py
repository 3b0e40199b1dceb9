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
    working = matmul_limits.measuring_frameworks(
        f for f, state in zip(known, states, strict=True) if state.works
    )
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


COMMAND = Subcommand(
    name="doctor",
    summary="Check what is installed, which devices exist, and how fast and steady the machine is.",
    examples=EXAMPLES,
    run=_run,
    options=_options,
)
