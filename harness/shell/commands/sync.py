"""`evenbench sync`: log to MLflow what a crash or an outage prevented."""

from __future__ import annotations

import argparse
import dataclasses
import json

from harness.shell.commands.parser import Parser, Subcommand
from harness.shell.tracking.store import open_store
from harness.shell.tracking.sync import sync


def _options(parser: Parser) -> None:
    parser.add_argument("--tracking-uri", help="default: the SQLite store in the results folder")
    parser.add_argument("--json", action="store_true", help="print the counts as JSON")


def _run(options: argparse.Namespace) -> int:
    results_dir = options.results_dir.resolve()
    counts = dataclasses.asdict(sync(results_dir, open_store(results_dir, options.tracking_uri)))
    print(json.dumps(counts) if options.json else "  ".join(f"{name} {n}" for name, n in counts.items()))
    return 0


COMMAND = Subcommand(
    name="sync",
    summary="Log to MLflow what a crash or an outage prevented.",
    examples="  evenbench sync\n  evenbench sync --tracking-uri http://127.0.0.1:5000",
    run=_run,
    options=_options,
)
