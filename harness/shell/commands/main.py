"""The command `evenbench`: a run or a sweep in Hydra's syntax, or one of a few subcommands."""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from harness.core.validation import ConfigError, Mistake, nearest
from harness.shell.environment.versions import project_version

HELP = """\
evenbench: train the same network in PyTorch and Keras, prove that it is the same, measure what differs.

  evenbench [key=value ...]              one run
  evenbench -m [key=value,value ...]     a sweep over all combinations
  evenbench COMMAND [--help]             one of: {commands}

Examples
  evenbench framework=keras data=breast_cancer optimizer.learning_rate=3e-3
  evenbench -m framework=torch,keras,keras_jax seed=range(5) study=first
  evenbench -m model.units=[64,32],[256,256] optimizer=adam,sgd
  evenbench experiment=bench             the main job
  evenbench --config-dir my_conf model=mine
  evenbench --cfg job                    show the configuration, run nothing

Choices
{groups}

Every key of the configuration can be given: --cfg job lists them with their defaults. Asking again for what
is finished does nothing; force=true does it again.
Exit status: 0 all well, 1 a run failed, 2 a wrong request.
Hydra's own help: evenbench --hydra-help
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the arguments say and return the exit status: 0 well, 1 a run failed, 2 a wrong request."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if arguments and arguments[0] in COMMANDS:
            return COMMANDS[arguments[0]](arguments[1:])
        if {"-h", "--help"} & set(arguments):
            print(_help())
            return 0
        if "--version" in arguments:
            print(f"evenbench {project_version()}")
            return 0
        if arguments and arguments[0].replace("-", "").isalpha() and not arguments[0].startswith("-"):
            word, allowed = arguments[0], f"{', '.join(COMMANDS)}, or key=value"
            raise ConfigError([Mistake("", f"{word!r} is no command", allowed, nearest(word, COMMANDS))])
        from harness.shell.compose import hydra

        return hydra.main(arguments)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print("interrupted; the same command goes on where it stopped", file=sys.stderr)
        return 128 + (interrupt.args[0] if interrupt.args else signal.SIGINT)
    except BrokenPipeError:
        # whoever read us (head, less) has gone: nothing is left to say, not even at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def command() -> NoReturn:
    """The command itself, which ends the process: what is installed as `evenbench`."""
    status = main()
    # else Python's end looks through all that MLflow's import left, for 0.8 s
    gc.freeze()
    sys.exit(status)


def _help() -> str:
    from harness.shell.compose.overrides import find_groups
    from harness.shell.environment.frameworks import conf_folder

    groups = find_groups([conf_folder()])
    shown = [f"  {name}={', '.join(sorted(groups[name]))}" for name in sorted(groups) if "/" not in name]
    return HELP.format(commands=", ".join(COMMANDS), groups="\n".join(shown))


class _Parser(argparse.ArgumentParser):
    """The standard one, with our way to say what is wrong."""

    def error(self, message: str) -> NoReturn:
        """Raise ConfigError; unknown options come with the nearest known one."""
        from harness.shell.compose.overrides import unknown_options

        unknown = message.removeprefix("unrecognized arguments: ")
        if unknown == message:
            raise ConfigError([Mistake("", f"{self.prog}: {message}")])
        raise ConfigError(unknown_options(unknown.split(), sorted(self._option_string_actions)))


def _parser(name: str, description: str, examples: str) -> argparse.ArgumentParser:
    parser = _Parser(
        prog=f"evenbench {name}",
        description=description,
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--results-dir", type=Path, default=Path("results"), help="default: results")
    return parser


def _ui(arguments: Sequence[str]) -> int:
    examples = "  evenbench ui\n  evenbench ui --port 5050 --open"
    parser = _parser("ui", "The MLflow UI on the project's store, until Ctrl-C.", examples)
    parser.add_argument("--tracking-uri", help="default: the SQLite store in the results folder")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, help="default: the first free one from 5000")
    parser.add_argument("--open", action="store_true", help="open a browser")
    options = parser.parse_args(arguments)
    from harness.shell.tracking.server import run_ui

    return run_ui(
        options.results_dir.resolve(), options.tracking_uri, options.host, options.port, options.open
    )


def _sync(arguments: Sequence[str]) -> int:
    examples = "  evenbench sync\n  evenbench sync --tracking-uri http://127.0.0.1:5000"
    parser = _parser("sync", "Put into MLflow what a crash or an outage kept from it.", examples)
    parser.add_argument("--tracking-uri", help="default: the SQLite store in the results folder")
    parser.add_argument("--json", action="store_true", help="print the counts as JSON")
    options = parser.parse_args(arguments)
    from harness.shell.tracking.store import open_store
    from harness.shell.tracking.sync import sync

    results_dir = options.results_dir.resolve()
    counts = dataclasses.asdict(sync(results_dir, open_store(results_dir, options.tracking_uri)))
    print(json.dumps(counts) if options.json else "  ".join(f"{name} {n}" for name, n in counts.items()))
    return 0


def _leaderboard(arguments: Sequence[str]) -> int:
    examples = (
        "  evenbench leaderboard\n  evenbench leaderboard bench --json\n  evenbench leaderboard --phases"
    )
    parser = _parser("leaderboard", "The table of finished runs, of one study or of all.", examples)
    parser.add_argument("study", nargs="?", help="default: all")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    phases = "where the time of a run goes: import, data, build, compile, epochs, evaluation"
    parser.add_argument("--phases", action="store_true", help=phases)
    options = parser.parse_args(arguments)
    from harness.shell.reports.leaderboard import print_leaderboard, rows_as_json
    from harness.shell.reports.phases import print_phases
    from harness.shell.studies.members import load_outcomes

    outcomes = load_outcomes(options.results_dir, options.study)
    if options.phases:
        print_phases(outcomes, options.json)
    elif options.json:
        print(rows_as_json(outcomes))
    else:
        print_leaderboard(outcomes)
    return 0


def _study(arguments: Sequence[str]) -> int:
    from harness.shell.commands.study import study_command

    return study_command(arguments, _parser)


def _certify(arguments: Sequence[str]) -> int:
    from harness.shell.commands.certify import certify_command

    return certify_command(arguments)


def _show(arguments: Sequence[str]) -> int:
    from harness.shell.commands.certify import show_command

    return show_command(arguments)


def _export(arguments: Sequence[str]) -> int:
    examples = """\
  evenbench export last --to torch                 the run that finished last
  evenbench export 1f3a --to keras                 the beginning of a run id is enough
  evenbench export 1f3a --to onnx --output served/digits"""
    description = "A finished run's network as a model that needs no evenbench, checked against the run."
    parser = _parser("export", description, examples)
    parser.add_argument("run", metavar="RUN", help="a run id or its beginning, or last")
    parser.add_argument("--to", required=True, metavar="TARGET", help="torch, keras or onnx")
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", help="default: exports/ in the results folder"
    )
    options = parser.parse_args(arguments)
    from harness.shell.commands.export import FRAMEWORKS, FailedExportError, export, report

    if options.to not in FRAMEWORKS:
        problem, known = f"{options.to!r} is no target", tuple(FRAMEWORKS)
        raise ConfigError([Mistake("--to", problem, ", ".join(known), nearest(options.to, known))])
    try:
        print(report(*export(options.results_dir.resolve(), options.run, options.to, options.output)))
    except FailedExportError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _doctor(arguments: Sequence[str]) -> int:
    examples = """\
  evenbench doctor
  evenbench doctor --again --json
  evenbench doctor --config-dir my_conf            also the frameworks of your own folder"""
    description = "What is installed, which devices there are, how fast and how steady the machine is."
    parser = _parser("doctor", description, examples)
    parser.add_argument("--config-dir", type=Path, metavar="DIR", help="also the frameworks of this folder")
    parser.add_argument("--again", action="store_true", help="measure limits that are known too")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    options = parser.parse_args(arguments)
    from harness.shell.doctor import doctor_command
    from harness.shell.environment.frameworks import conf_folder

    folders = [conf_folder(), *([options.config_dir] if options.config_dir else [])]
    return doctor_command(options.results_dir.resolve(), folders, options.json, options.again)


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "certify": _certify,
    "show": _show,
    "export": _export,
    "leaderboard": _leaderboard,
    "study": _study,
    "doctor": _doctor,
    "ui": _ui,
    "sync": _sync,
}
