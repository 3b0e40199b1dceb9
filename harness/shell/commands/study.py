"""The subcommand `study`: list studies, look at one, remove one."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from harness.core.validation import ConfigError, Mistake, nearest
from harness.shell.studies.listing import print_studies, print_study
from harness.shell.studies.removal import Plan, carry_out, plan
from harness.shell.tracking.store import Unreachable

MakeParser = Callable[[str, str, str], argparse.ArgumentParser]
"""From the command's name, what it does, and examples."""

HELP = """\
usage: evenbench study ls|show|rm [--help]

Studies: the names (`study=`) that group runs.

examples:
  evenbench study ls                      all of them: runs by status, models, frameworks, size
  evenbench study show first              what its runs share, and a line a run
  evenbench study show first --json
  evenbench study rm first                remove its runs, from MLflow too; asks before it does
  evenbench study rm first --yes          without asking
"""


def study_command(arguments: Sequence[str], parser: MakeParser) -> int:
    """Do one of the actions; returns the exit status."""
    actions = {"ls": _list, "show": _show, "rm": _remove}
    word, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if word in ("-h", "--help"):
        print(HELP, end="")
        return 0
    if word not in actions:
        problem = f"{word!r} is nothing that can be done with studies"
        raise ConfigError([Mistake("", problem, ", ".join(actions), nearest(word, actions))])
    return actions[word](rest, parser)


def _list(arguments: Sequence[str], make: MakeParser) -> int:
    parser = make("study ls", "The studies in the results folder.", "  evenbench study ls --json")
    parser.add_argument("--json", action="store_true", help="print them as JSON")
    options = parser.parse_args(arguments)
    print_studies(options.results_dir, options.json)
    return 0


def _show(arguments: Sequence[str], make: MakeParser) -> int:
    parser = make("study show", "What a study holds, run by run.", "  evenbench study show first --json")
    parser.add_argument("study", metavar="NAME")
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    options = parser.parse_args(arguments)
    print_study(options.results_dir, options.study, options.json)
    return 0


def _remove(arguments: Sequence[str], make: MakeParser) -> int:
    description = "Remove a study: its run folders, what MLflow has of it, the data that only it needs."
    parser = make("study rm", description, "  evenbench study rm first\n  evenbench study rm first --yes")
    parser.add_argument("study", metavar="NAME")
    parser.add_argument("--yes", action="store_true", help="don't ask")
    options = parser.parse_args(arguments)
    try:
        found = plan(options.results_dir.resolve(), options.study)
        print("\n".join(found.lines()))
        if not options.yes and not _agreed(found):
            print("nothing was removed")
            return 0
        busy = carry_out(found)
    except Unreachable as error:
        print(f"MLflow does not answer, so not all can be removed; ask again later: {error}", file=sys.stderr)
        return 1
    for folder in busy:
        print(f"run {folder.run_id} stays: a process has begun to work on it", file=sys.stderr)
    print("removed" if not busy else f"removed all but {len(busy)}")
    return 1 if busy else 0


def _agreed(found: Plan) -> bool:
    """Ask; raises ConfigError where there is nobody to ask."""
    if not sys.stdin.isatty():
        problem = f"nobody can be asked here whether to remove {found.study!r}"
        raise ConfigError([Mistake("--yes", problem, "--yes removes it without asking")])
    try:
        return input("Remove it? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False
