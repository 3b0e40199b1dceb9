"""Certificates as a table: the largest deviation at each gate, native optimizers, and what failed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.table import Table

from harness.core.certificates.cases import STEPS
from harness.core.certificates.gates import BOUND, GATES
from harness.shell.certificates.store import Certificate, NamedDeviation, named_deviations
from harness.shell.reports.tables import plain_table, screen


def print_certificates(certificates: Sequence[Certificate]) -> None:
    """Print a row per certificate: the largest deviation at each gate, and of each native optimizer.

    Below the table: the proofs of the named deviations, and which bounds were broken.
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
    """One line for each broken bound or failed framework."""
    for framework, error in certificate.errors.items():
        yield f"{framework}: {error}"
    for comparison in certificate.comparisons:
        for gate in comparison.gates:
            if not gate.passed:
                pair = f"{comparison.framework} against {comparison.reference}"
                yield f"{pair}: {gate.name} {gate.deviation:.1e} {gate.where}"
    for framework in certificate.native:
        native = certificate.native_check(framework)
        if native.verdict == "fails":
            named = f", {native.remainder:.1e} with {', '.join(native.known)}" if native.known else ""
            yield f"{framework}: its own optimizer is {native.deviation:.1e} off the rule{named}"


def _worst(certificate: Certificate, gate: str) -> str:
    deviations = [g.deviation for c in certificate.comparisons for g in c.gates if g.name == gate]
    return f"{max(deviations):.1e}" if deviations else "-"


def _native(certificate: Certificate, framework: str) -> str:
    if framework not in certificate.native:
        return "-"
    native = certificate.native_check(framework)
    return f"{native.deviation:.1e}" + {"exact": "", "deviates": "*", "fails": "!"}[native.verdict]
