"""`evenbench ui`: the MLflow UI on the project's store."""

from __future__ import annotations

import argparse

from harness.shell.commands.parser import Parser, Subcommand
from harness.shell.tracking.server import run_ui


def _options(parser: Parser) -> None:
    parser.add_argument("--tracking-uri", help="default: the SQLite store in the results folder")
    parser.add_argument("--host", default="127.0.0.1", help="default: 127.0.0.1")
    parser.add_argument("--port", type=int, help="default: the first free port from 5000")
    parser.add_argument("--open", action="store_true", help="open a browser")


def _run(options: argparse.Namespace) -> int:
    return run_ui(
        options.results_dir.resolve(), options.tracking_uri, options.host, options.port, options.open
    )


COMMAND = Subcommand(
    name="ui",
    summary="Serve the MLflow UI on the project's store, until Ctrl-C.",
    examples="  evenbench ui\n  evenbench ui --port 5050 --open",
    run=_run,
    options=_options,
)
