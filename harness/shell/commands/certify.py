"""`evenbench certify`: prove that networks are the same in every framework, or that trainings score the same.

Without overrides every model is certified with every optimizer in all installed frameworks. `--accuracy`
trains instead and compares scores over seeds, see `accuracy`.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from harness.core.validation import ConfigError, Mistake, to_plain
from harness.shell.certificates.certify import certify, subjects
from harness.shell.certificates.store import Certificate, CertificateStore
from harness.shell.certificates.tables import print_certificates
from harness.shell.commands.accuracy import MARGIN, certify_accuracy
from harness.shell.commands.parser import Parser, Subcommand
from harness.shell.compose.hydra import collect
from harness.shell.environment.frameworks import installed_frameworks
from harness.shell.runs.inputs import RunInputs
from harness.shell.runs.prepare import check_runs

EXAMPLES = """\
  evenbench certify                                    every model with every optimizer in all frameworks
  evenbench certify model=lstm optimizer=adam,sgd
  evenbench certify model=cnn data=mnist_5k framework=torch,keras --json
  evenbench certify --config-dir my_conf model=mine
  evenbench certify --accuracy model=fnn,lstm          float32 trainings over five seeds: equally accurate?
  evenbench certify --accuracy experiment=bench seed=range(10) --margin 0.005"""


def _options(parser: Parser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--again", action="store_true", help="repeat certificates that exist")
    parser.add_argument("--accuracy", action="store_true", help="train, and compare the scores over seeds")
    margin = f"with --accuracy: the largest difference that does not matter, in units of the score ({MARGIN})"
    parser.add_argument("--margin", metavar="M", help=margin)


def _run(options: argparse.Namespace) -> int:
    if options.accuracy:
        force = ["force=true"] if options.again else []
        return certify_accuracy([*options.overrides, *force], _margin(options.margin), options.json)
    if options.margin is not None:
        raise ConfigError([Mistake("--margin", "applies to scores, which only --accuracy compares")])
    certificates = _certificates(options.overrides, options.again)
    if options.json:
        print(json.dumps([to_plain(certificate) for certificate in certificates], indent=1))
    else:
        print_certificates(certificates)
    return 0 if all(certificate.passed for certificate in certificates) else 1


def _certificates(overrides: Sequence[str], again: bool) -> list[Certificate]:
    """The certificates of what the overrides describe; those that are missing (or all) are made first."""
    runs = check_runs(collect([*_defaults(overrides), *overrides]), RunInputs())
    store = CertificateStore(Path(runs[0].config.results_dir).resolve())
    requested = subjects(runs)
    if any(len(subject.frameworks) < 2 for subject in requested):
        names = ", ".join(installed_frameworks())
        problem = "a single framework has nothing to agree with"
        raise ConfigError([Mistake("framework", problem, f"two of {names}")])
    missing = [s for s in requested if again or not store.covers(s.id, s.parties())]
    console = Console(stderr=True, highlight=False)

    def report(certificate: Certificate) -> None:
        store.put(certificate)
        verdict = "agrees" if certificate.passed else "FAILS"
        console.print(f"{certificate.model} {certificate.optimizer}: {verdict}", markup=False)

    certify(missing, report)
    return [certificate for s in requested if (certificate := store.get(s.id)) is not None]


def _defaults(overrides: Sequence[str]) -> list[str]:
    """The widest choice for what the overrides leave open: all models, optimizers, installed frameworks."""
    keys = {text.partition("=")[0].lstrip("+") for text in overrides}
    widest = {"model": "glob(*)", "optimizer": "glob(*)", "framework": ",".join(installed_frameworks())}
    return [f"{key}={choice}" for key, choice in widest.items() if key not in keys]


def _margin(text: str | None) -> float:
    """The margin of the command line, or the default; raises ConfigError."""
    try:
        margin = float(text) if text is not None else MARGIN
    except ValueError:
        margin = math.nan
    if not 0 < margin < math.inf:
        raise ConfigError([Mistake("--margin", f"{text!r} is not a margin", "a number above 0, as 0.01")])
    return margin


COMMAND = Subcommand(
    name="certify",
    summary="Prove that a network is the same in every framework.",
    examples=EXAMPLES,
    run=_run,
    options=_options,
    arguments="[key=value ...]",
    composes=True,
)
