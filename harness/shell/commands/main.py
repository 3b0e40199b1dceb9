"""The command `evenbench`: train a run, a sweep or a search, or dispatch to a subcommand of this package."""

from __future__ import annotations

import gc
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from harness.core.validation import ConfigError, Mistake, nearest
from harness.shell.commands.parser import Command, listing
from harness.shell.environment.versions import project_version

COMMANDS = ("certify", "show", "export", "leaderboard", "study", "doctor", "ui", "sync")
"""The subcommands, each a module of this package."""

SUMMARY = "Train the same network in PyTorch and Keras, prove that it is the same, measure what differs."
USAGE = """\
usage: evenbench [options] [key=value ...]            one run
       evenbench -m [options] [key=value,value ...]   a sweep over all combinations
       evenbench COMMAND [--help]                     a subcommand"""
OPTIONS = {
    "-m, --multirun": "run all combinations of the values given",
    "--cfg job": "print the configuration with all keys and defaults, run nothing",
    "--config-dir DIR": "add your own models, data settings and experiments",
    "--hydra-help": "print Hydra's own help",
    "--version": "print the version",
}
EXAMPLES = """\
  evenbench framework=keras data=breast_cancer optimizer.learning_rate=3e-3
  evenbench -m framework=torch,keras,keras_jax seed=range(5) study=first
  evenbench -m model.units=[64,32],[256,256] optimizer=adam,sgd
  evenbench experiment=bench             the main job
  evenbench --config-dir my_conf model=mine
  evenbench --cfg job                    print the configuration, run nothing"""
NOTES = """\
A finished run is not repeated unless force=true.
Exit status: 0 success, 1 a run failed, 2 a mistake in the request."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0 success, 1 a failed run, 2 a mistake in the request."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(arguments)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print("interrupted; run the same command again to resume", file=sys.stderr)
        return 128 + (interrupt.args[0] if interrupt.args else signal.SIGINT)
    except BrokenPipeError:
        # the reader (head, less) has closed the pipe: print nothing more, not even at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def command() -> NoReturn:
    """Run the command and end the process: the entry point that is installed as `evenbench`."""
    status = main()
    # otherwise the interpreter's shutdown collects everything that importing MLflow left, which takes 0.8 s
    gc.freeze()
    sys.exit(status)


def _dispatch(arguments: list[str]) -> int:
    first = arguments[0] if arguments else ""
    if first in COMMANDS:
        return subcommand(first)(arguments[1:])
    if {"-h", "--help"} & set(arguments):
        print(help_text())
        return 0
    if "--version" in arguments:
        print(f"evenbench {project_version()}")
        return 0
    if first.replace("-", "").isalpha() and not first.startswith("-"):
        allowed = f"{', '.join(COMMANDS)}, or key=value"
        raise ConfigError([Mistake("", f"unknown command {first!r}", allowed, nearest(first, COMMANDS))])
    return train(arguments)


def train(arguments: Sequence[str]) -> int:
    """Compose, train and print: what `evenbench` does without a subcommand. Raises ConfigError.

    Returns 1 if a run failed, and Hydra's own status if there was nothing to run.
    """
    from harness.shell.compose.hydra import compose
    from harness.shell.reports.leaderboard import print_leaderboard
    from harness.shell.reports.progress import reporter
    from harness.shell.session.session import Session

    with Session(reporter()) as session:
        status = compose(arguments, session.execute, session)
    if session.report is not None:
        session.report()
    elif session.outcomes:
        print_leaderboard(session.outcomes)
    if session.outcomes:
        return int(any(outcome.failed for outcome in session.outcomes))
    return status


def subcommand(name: str) -> Command:
    """The subcommand of a module, which is imported only now: most commands need little of the others."""
    command: Command = importlib.import_module(f"harness.shell.commands.{name}").COMMAND
    return command


def help_text() -> str:
    """The text of `evenbench --help`."""
    from harness.shell.compose.overrides import find_groups
    from harness.shell.environment.frameworks import conf_folder

    groups = find_groups([conf_folder()])
    choices = {f"{name}=": ", ".join(sorted(groups[name])) for name in sorted(groups) if "/" not in name}
    sections = (
        USAGE,
        SUMMARY,
        listing("commands", {name: subcommand(name).summary for name in COMMANDS}),
        listing("choices", choices),
        listing("options", OPTIONS),
        f"examples:\n{EXAMPLES}",
        NOTES,
    )
    return "\n\n".join(sections)
