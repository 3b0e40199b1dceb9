"""`evenbench leaderboard`: the table of finished runs, or where their time goes."""

from __future__ import annotations

import argparse

from harness.shell.commands.parser import Parser, Subcommand
from harness.shell.reports.leaderboard import print_leaderboard, rows_as_json
from harness.shell.reports.phases import print_phases
from harness.shell.studies.members import load_outcomes

EXAMPLES = """\
  evenbench leaderboard
  evenbench leaderboard bench --json
  evenbench leaderboard --phases"""


def _options(parser: Parser) -> None:
    parser.add_argument("study", metavar="STUDY", nargs="?", help="default: all studies")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    phases = "print where the time of a run goes: import, data, build, compile, epochs, evaluation"
    parser.add_argument("--phases", action="store_true", help=phases)


def _run(options: argparse.Namespace) -> int:
    outcomes = load_outcomes(options.results_dir, options.study)
    if options.phases:
        print_phases(outcomes, options.json)
    elif options.json:
        print(rows_as_json(outcomes))
    else:
        print_leaderboard(outcomes)
    return 0


COMMAND = Subcommand(
    name="leaderboard",
    summary="Print the table of finished runs, of one study or of all.",
    examples=EXAMPLES,
    run=_run,
    options=_options,
    arguments="[STUDY]",
)
