"""`evenbench show`: the layers of a network with shapes, parameters and operations, as table and drawing."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from harness.shell.commands.parser import Parser, Subcommand
from harness.shell.compose.hydra import collect
from harness.shell.reports.network import as_json, print_table
from harness.shell.reports.network_drawing import drawing
from harness.shell.reports.tables import screen
from harness.shell.runs.inputs import DatasetCache

EXAMPLES = """\
  evenbench show model=transformer data=digits
  evenbench show model=cnn model.filters=[16,32] --svg cnn.svg"""


def _options(parser: Parser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="also draw the network")


def _run(options: argparse.Namespace) -> int:
    datasets = DatasetCache()
    for config in collect(options.overrides):
        dataset, _ = datasets.get(config.data, Path(config.results_dir).resolve())
        network = config.plan(dataset).network
        title = f"{config.model.name} on {config.data.name}"
        if options.json:
            print(as_json(title, network))
        else:
            print_table(title, network, screen())
        if options.svg:
            options.svg.write_text(drawing(title, network), encoding="utf-8")
            print(f"drawn: {options.svg}", file=sys.stderr)
    return 0


COMMAND = Subcommand(
    name="show",
    summary="Print the layers of a network with shapes, parameters and FLOPs.",
    examples=EXAMPLES,
    run=_run,
    options=_options,
    arguments="[key=value ...]",
    composes=True,
)
