"""`evenbench study ls|show|rm`: list studies, inspect one, remove one."""

from __future__ import annotations

import argparse
import sys

from harness.core.validation import ConfigError, Mistake
from harness.shell.commands.parser import Parser, Subcommand, SubcommandGroup
from harness.shell.studies.listing import print_studies, print_study
from harness.shell.studies.removal import RemovalPlan, plan_removal, remove
from harness.shell.tracking.store import Unreachable

EXAMPLES = """\
  evenbench study ls                      all studies: runs by status, models, frameworks, size
  evenbench study show first              the settings that its runs share, and one line per run
  evenbench study show first --json
  evenbench study rm first                remove its runs, from MLflow too, after confirmation
  evenbench study rm first --yes          without confirmation"""


def _json_option(parser: Parser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def _show_options(parser: Parser) -> None:
    parser.add_argument("study", metavar="NAME", help="the study's name, as `evenbench study ls` prints it")
    _json_option(parser)


def _remove_options(parser: Parser) -> None:
    parser.add_argument("study", metavar="NAME", help="the study's name, as `evenbench study ls` prints it")
    parser.add_argument("--yes", action="store_true", help="do not ask for confirmation")


def _list(options: argparse.Namespace) -> int:
    print_studies(options.results_dir, options.json)
    return 0


def _show(options: argparse.Namespace) -> int:
    print_study(options.results_dir, options.study, options.json)
    return 0


def _remove(options: argparse.Namespace) -> int:
    try:
        removal = plan_removal(options.results_dir.resolve(), options.study)
        print("\n".join(removal.lines()))
        if not options.yes and not _confirmed(removal):
            print("nothing was removed")
            return 0
        busy = remove(removal)
    except Unreachable as error:
        problem = "MLflow does not answer, so not everything can be removed; run the command again later"
        print(f"{problem}: {error}", file=sys.stderr)
        return 1
    for folder in busy:
        print(f"run {folder.run_id} is kept: a process has started to work on it", file=sys.stderr)
    print("removed" if not busy else f"removed all but {len(busy)}")
    return 1 if busy else 0


def _confirmed(removal: RemovalPlan) -> bool:
    """Ask the user; raises ConfigError where stdin is not a terminal."""
    if not sys.stdin.isatty():
        problem = f"cannot ask whether to remove {removal.study!r}: stdin is not a terminal"
        raise ConfigError([Mistake("--yes", problem, "--yes removes it without asking")])
    try:
        return input("Remove it? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


LIST = Subcommand(
    name="study ls",
    summary="List the studies in the results folder.",
    examples="  evenbench study ls\n  evenbench study ls --json",
    run=_list,
    options=_json_option,
)
SHOW = Subcommand(
    name="study show",
    summary="Print what a study contains, run by run.",
    examples="  evenbench study show first\n  evenbench study show first --json",
    run=_show,
    options=_show_options,
    arguments="NAME",
)
REMOVE = Subcommand(
    name="study rm",
    summary="Remove a study: its run folders, its MLflow runs, and data that only it needs.",
    examples="  evenbench study rm first\n  evenbench study rm first --yes",
    run=_remove,
    options=_remove_options,
    arguments="NAME",
)
COMMAND = SubcommandGroup(
    name="study",
    summary="List, inspect and delete studies, the names (`study=`) that group runs.",
    examples=EXAMPLES,
    members={"ls": LIST, "show": SHOW, "rm": REMOVE},
)
