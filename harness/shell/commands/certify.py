"""The subcommands that look at networks without training them for real: `certify` and `show`."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from harness.core.certificates.cases import STEPS
from harness.core.certificates.gates import BOUND, GATES
from harness.core.config.run_config import RunConfig
from harness.core.data.dataset import Dataset
from harness.core.validation import ConfigError, Mistake, to_plain
from harness.shell.certificates.certify import certify, subjects
from harness.shell.certificates.store import Certificate, CertificateStore, NamedDeviation, named_deviations
from harness.shell.commands.accuracy import MARGIN, accuracy_command
from harness.shell.compose import hydra
from harness.shell.reports.network import as_json, drawing, print_table
from harness.shell.reports.tables import plain_table, screen
from harness.shell.runs.inputs import DatasetCache

CERTIFY_EXAMPLES = """\
  evenbench certify                                    every model with every optimizer in all frameworks
  evenbench certify model=lstm optimizer=adam,sgd
  evenbench certify model=cnn data=mnist_5k framework=torch,keras --json
  evenbench certify --config-dir my_conf model=mine
  evenbench certify --accuracy model=fnn,lstm          whole trainings in float32, five seeds: equally good?
  evenbench certify --accuracy experiment=bench seed=range(10) --margin 0.005"""
SHOW_EXAMPLES = """\
  evenbench show model=transformer data=digits
  evenbench show model=cnn model.filters=[16,32] --svg cnn.svg"""


def certify_command(arguments: Sequence[str]) -> int:
    """Make certificates, print them, and return 1 when a bound was broken."""
    parser = _parser("certify", "Prove that a network is the same in every framework.", CERTIFY_EXAMPLES)
    parser.add_argument("--again", action="store_true", help="also those that are there already")
    parser.add_argument("--accuracy", action="store_true", help="train, and compare the scores over seeds")
    margin = f"with --accuracy: the largest difference that does not matter, in units of the score ({MARGIN})"
    parser.add_argument("--margin", metavar="M", help=margin)
    options, rest = parser.parse_known_args(arguments)
    if options.accuracy:
        again = ["force=true"] if options.again else []
        return accuracy_command([*rest, *again], _margin(options.margin), options.json)
    if options.margin is not None:
        raise ConfigError([Mistake("--margin", "is of scores, which only --accuracy compares")])
    configs = hydra.collect([*_defaults(rest), *rest])
    shelf, data = CertificateStore(Path(configs[0].results_dir).resolve()), DatasetCache()
    wanted = subjects((config, _dataset(config, data)) for config in configs)
    if any(len(subject.frameworks) < 2 for subject in wanted):
        names = ", ".join(hydra.installed_frameworks())
        raise ConfigError(
            [Mistake("framework", "one framework has nothing to agree with", f"two of {names}")]
        )
    missing = [s for s in wanted if options.again or not shelf.covers(s.id, s.parties())]
    console = Console(stderr=True, highlight=False)

    def done(certificate: Certificate) -> None:
        shelf.put(certificate)
        verdict = "agrees" if certificate.passed else "FAILS"
        console.print(f"{certificate.model} {certificate.optimizer}: {verdict}", markup=False)

    certify(missing, done)
    certificates = [found for s in wanted if (found := shelf.get(s.id)) is not None]
    if options.json:
        print(json.dumps([to_plain(certificate) for certificate in certificates], indent=1))
    else:
        print_certificates(certificates)
    return 0 if all(certificate.passed for certificate in certificates) else 1


def show_command(arguments: Sequence[str]) -> int:
    """Print the layers of networks, and draw them on request."""
    parser = _parser("show", "The layers of a network with shapes, parameters and FLOPs.", SHOW_EXAMPLES)
    parser.add_argument("--svg", type=Path, metavar="FILE", help="also draw it")
    options, rest = parser.parse_known_args(arguments)
    data = DatasetCache()
    for config in hydra.collect(rest):
        network = config.plan(_dataset(config, data)).network
        title = f"{config.model.name} on {config.data.name}"
        if options.json:
            print(as_json(title, network))
        else:
            print_table(title, network, screen())
        if options.svg:
            options.svg.write_text(drawing(title, network), encoding="utf-8")
            print(f"drawn: {options.svg}", file=sys.stderr)
    return 0


def print_certificates(certificates: Sequence[Certificate]) -> None:
    """A row for each: the largest deviation over frameworks at each gate, and of each own optimizer.

    Below it, how the proofs of the deviations that have a name went, and what broke a bound.
    """
    frameworks = list(dict.fromkeys(name for c in certificates for name in c.parties))
    title = (
        f"Largest deviations, float64, {STEPS} steps, bound {BOUND:g}; own optimizers against the shared rule"
    )
    table = plain_table(title)
    for name in ("model", "optimizer"):
        table.add_column(name, no_wrap=True)
    for name in (*GATES, *(f"own {framework}" for framework in frameworks)):
        table.add_column(name, justify="right")
    table.add_column("verdict")
    for certificate in certificates:
        gates = [_worst(certificate, name) for name in GATES]
        native = [_native(certificate, framework) for framework in frameworks]
        verdict = "agrees" if certificate.passed else "FAILS"
        table.add_row(certificate.model, certificate.optimizer, *gates, *native, verdict)
    console = screen()
    console.print(table)
    named = named_deviations(certificates)
    if named:
        console.print(_named_table(named))
    for certificate in certificates:
        for line in _refusals(certificate):
            console.print(f"{certificate.model} {certificate.optimizer} {line}", markup=False)


def _named_table(named: Sequence[NamedDeviation]) -> Table:
    table = plain_table()
    for column in ("* known of the own optimizer", "frameworks"):
        table.add_column(column)
    for column in ("off the rule", "off a rule with this"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("proof", no_wrap=True)
    for row in named:
        remainder = "-" if row.remainder is None else f"{row.remainder:.1e}"
        names, frameworks = ", ".join(row.names), ", ".join(row.frameworks)
        table.add_row(names, frameworks, f"{row.deviation:.1e}", remainder, row.proof)
    return table


def _refusals(certificate: Certificate) -> Iterator[str]:
    """What broke a certificate, a line for each."""
    for framework, error in certificate.errors.items():
        yield f"{framework}: {error}"
    for comparison in certificate.comparisons:
        for gate in comparison.gates:
            if not gate.passed:
                pair = f"{comparison.framework} against {comparison.reference}"
                yield f"{pair}: {gate.name} {gate.deviation:.1e} {gate.where}"
    for framework in certificate.native:
        native = certificate.own(framework)
        if native.verdict == "fails":
            known = f", {native.remainder:.1e} with {', '.join(native.known)}" if native.known else ""
            yield f"{framework}: its own optimizer is {native.deviation:.1e} off the rule{known}"


def _worst(certificate: Certificate, gate: str) -> str:
    found = [g.deviation for c in certificate.comparisons for g in c.gates if g.name == gate]
    return f"{max(found):.1e}" if found else "-"


def _native(certificate: Certificate, framework: str) -> str:
    if framework not in certificate.native:
        return "-"
    native = certificate.own(framework)
    return f"{native.deviation:.1e}" + {"exact": "", "deviates": "*", "fails": "!"}[native.verdict]


def _defaults(arguments: Sequence[str]) -> list[str]:
    """The widest choice of what the arguments leave open: every model, optimizer and installed framework."""
    given = {text.partition("=")[0].lstrip("+") for text in arguments}
    widest = {
        "model": "glob(*)",
        "optimizer": "glob(*)",
        "framework": ",".join(hydra.installed_frameworks()),
    }
    return [f"{key}={choice}" for key, choice in widest.items() if key not in given]


def _margin(text: str | None) -> float:
    """The margin as it was given, or the default one; raises ConfigError."""
    try:
        margin = float(text) if text is not None else MARGIN
    except ValueError:
        margin = math.nan
    if not 0 < margin < math.inf:
        raise ConfigError([Mistake("--margin", f"{text!r} is no margin", "a number above 0, as 0.01")])
    return margin


def _dataset(config: RunConfig, data: DatasetCache) -> Dataset:
    return data.get(config.data, Path(config.results_dir).resolve())[0]


def _parser(name: str, description: str, examples: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"evenbench {name}",
        usage=f"evenbench {name} [options] [key=value ...]",
        description=description,
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser
