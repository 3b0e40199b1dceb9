"""The subcommands that look at networks without training them for real: `certify` and `show`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from harness.config import RunConfig
from harness.data import Dataset
from harness.parity import BOUND, GATES, STEPS
from harness.parse import ConfigError, Mistake, to_plain
from harness.shell import task
from harness.shell.certificate import Certificate, Shelf
from harness.shell.certify import certify, subjects
from harness.shell.prepare import DataShelf
from harness.shell.show import as_json, drawing, print_table

CERTIFY_EXAMPLES = """\
  evenbench certify                                    every model with every optimizer in all frameworks
  evenbench certify model=lstm optimizer=adam,sgd
  evenbench certify model=cnn data=mnist_5k framework=torch,keras --json
  evenbench certify --config-dir my_conf model=mine"""
SHOW_EXAMPLES = """\
  evenbench show model=transformer data=digits
  evenbench show model=cnn model.filters=[16,32] --svg cnn.svg"""
EVERYTHING = (
    "model=glob(*)",
    "optimizer=glob(*)",
    "framework=${installed:torch,keras,keras_jax,keras_torch}",
)


def certify_command(arguments: Sequence[str]) -> int:
    """Make certificates, print them, and return 1 when a bound was broken."""
    parser = _parser("certify", "Prove that a network is the same in every framework.", CERTIFY_EXAMPLES)
    parser.add_argument("--again", action="store_true", help="also those that are there already")
    options, rest = parser.parse_known_args(arguments)
    configs = task.collect([*_defaults(rest), *rest])
    shelf, data = Shelf(Path(configs[0].results_dir).resolve()), DataShelf()
    wanted = subjects((config, _dataset(config, data)) for config in configs)
    if any(len(subject.frameworks) < 2 for subject in wanted):
        names = ", ".join(task.installed_frameworks())
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
    data = DataShelf()
    for config in task.collect(rest):
        network = config.plan(_dataset(config, data)).network
        title = f"{config.model.name} on {config.data.name}"
        if options.json:
            print(as_json(title, network))
        else:
            print_table(title, network, _console())
        if options.svg:
            options.svg.write_text(drawing(title, network), encoding="utf-8")
            print(f"drawn: {options.svg}", file=sys.stderr)
    return 0


def print_certificates(certificates: Sequence[Certificate]) -> None:
    """A row for each: the largest deviation over frameworks at each gate, and of each own optimizer."""
    frameworks = list(dict.fromkeys(name for c in certificates for name in c.parties))
    title = (
        f"Largest deviations, float64, {STEPS} steps, bound {BOUND:g}; own optimizers against the shared rule"
    )
    table = Table(title=title, title_justify="left", header_style="bold", box=None, pad_edge=False)
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
    console = _console()
    console.print(table)
    known = sorted({name for c in certificates for n in c.native.values() for name in n["known"]})
    if known:
        console.print(
            f"* a known difference of the framework's own optimizer: {', '.join(known)}", markup=False
        )
    for certificate in certificates:
        for framework, error in certificate.errors.items():
            console.print(f"{certificate.model} {certificate.optimizer} {framework}: {error}", markup=False)
        for comparison in certificate.comparisons:
            for gate in comparison.gates:
                if not gate.passed:
                    pair = f"{comparison.framework} against {comparison.reference}"
                    text = f"{gate.name} {gate.deviation:.1e} {gate.where}"
                    console.print(f"{certificate.model} {certificate.optimizer} {pair}: {text}", markup=False)


def _worst(certificate: Certificate, gate: str) -> str:
    found = [g.deviation for c in certificate.comparisons for g in c.gates if g.name == gate]
    return f"{max(found):.1e}" if found else "-"


def _native(certificate: Certificate, framework: str) -> str:
    native = certificate.native.get(framework)
    if native is None:
        return "-"
    return f"{native['deviation']:.1e}" + (
        "*" if certificate.verdict(framework, "native") == "deviates" else ""
    )


def _defaults(arguments: Sequence[str]) -> list[str]:
    """The widest choice of what the arguments leave open: every model, optimizer and installed framework."""
    given = {text.partition("=")[0].lstrip("+") for text in arguments}
    widest = {
        "model": "glob(*)",
        "optimizer": "glob(*)",
        "framework": ",".join(task.installed_frameworks()),
    }
    return [f"{key}={choice}" for key, choice in widest.items() if key not in given]


def _dataset(config: RunConfig, data: DataShelf) -> Dataset:
    return data.get(config.data, Path(config.results_dir).resolve())[0]


def _console() -> Console:
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 200  # a file has no width: whole lines are easier to read, and to search
    return console


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
