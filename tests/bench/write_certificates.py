"""Certify everything, plant every fault and write the results to docs/results/certificates.md.

python -m tests.bench.write_certificates
"""

from __future__ import annotations

import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import Any

from harness.core.certificates.cases import BATCH_SIZE, STEPS
from harness.core.certificates.gates import BOUND, GATES
from harness.core.validation import parse
from harness.shell.certificates.store import Certificate, named_deviations
from tests.bench.pages import layout
from tests.bench.report import Report, Table, command, machine, say
from tests.support.adapter_process import AdapterProcesses
from tests.support.paths import ROOT
from tests.support.planted import faults as planted
from tests.support.planted.faults import FAULTS, Caught

PAGE = ROOT / "docs" / "results" / "certificates.md"
WIDTH = 120
SCHEDULED = ("model=lstm", "optimizer=momentum,nesterov", "schedule=cosine")

MEANINGS = {
    "epsilon_inside_bias_correction": "epsilon is added to the root before the bias correction (the paper's "
    "“epsilon hat”), where the rule adds it after",
    "epsilon_inside_root": "epsilon is added inside the root, where the rule adds it outside",
    "velocity_carries_learning_rate": "the velocity carries the learning rate: the same at a constant rate, "
    "different under a schedule",
    "squares_each_occurrence_of_a_token": "`fit` on TensorFlow squares each occurrence of a token separately",
}
"""What the names mean that adapters give to deviations of their own optimizers."""

TOP = f"""\
# Certificates

Written by `python -m tests.bench.write_certificates` from the output of `evenbench certify --json` and from
the faults that the test suite plants. No figure here is typed by hand.
[How certificates work](../reference/certification.md) explains gates, verdicts and proofs.

A certificate is made of {STEPS} training steps of {BATCH_SIZE} rows in float64 on a CPU, from the same
weights, on the same batches, in every framework, each in its own process. Every framework is checked against
the first one, and the tables give the largest deviation over all of them. **The bound is {BOUND:g}** at every
gate, for every model and optimizer.

## Summary
"""


@dataclass(frozen=True)
class Matrix:
    """Certificates, and what they took: seconds by the clock, and of processor time in all processes."""

    certificates: tuple[Certificate, ...]
    wall_s: float
    cpu_s: float


def write() -> Report:
    """Certify, plant the faults and write the page."""
    report = measure()
    sections = "\n".join(_sections(report.tables))
    machine_text = _made(report.values, report.measured_on)
    draft = PAGE.with_name(f".{PAGE.name}.tmp")
    page = "\n".join([TOP, _verdict(report.values), summary(sections), machine_text, layout.fold(sections)])
    draft.write_text(page, encoding="utf-8")
    os.replace(draft, PAGE)
    return report


def summary(sections: str) -> str:
    """The largest deviation at each gate, and how many own optimizers of each framework are exact."""
    gates, own, *_ = layout.tables(sections)
    parameters, *others = GATES
    largest = [(name, max(gates.numbers(name), default=0.0)) for name in (parameters, *others)]
    rows = [f"| {name} | {_number(value)} |" for name, value in largest]
    lines = ["| gate | largest deviation between frameworks, shared rule |", "|---|---|", *rows, ""]
    lines += ["| framework | own optimizer exact | deviates as named | fails |", "|---|---|---|---|"]
    for framework in own.columns[2:]:
        verdicts = [cell.split()[-1] for cell in own.column(framework)]
        counts = (str(verdicts.count(verdict)) for verdict in ("exact", "deviates", "fails"))
        lines.append(f"| {framework} | {' | '.join(counts)} |")
    return "\n".join(lines) + "\n"


def measure() -> Report:
    """Every model with every optimizer in every framework that is installed, and every planted fault."""
    on = machine()
    say("== every model with every optimizer")
    matrix = certified()
    say("== under a schedule")
    scheduled = certified(*SCHEDULED)
    say("== planted faults")
    faults = list(caught())
    everything = (*matrix.certificates, *scheduled.certificates)
    return Report(
        {
            "wall_s": round(matrix.wall_s),
            "cpu_s": round(matrix.cpu_s),
            "certificates": len(matrix.certificates),
            "frameworks": _frameworks(matrix.certificates),
            "made": sorted({c.made for c in everything}),
            "versions": _versions(matrix.certificates),
            "largest": max(_worst(c, gate) for c in everything for gate in GATES),
            "passed": all(c.passed for c in everything),
            "faults": len(faults),
            "caught": sum(result.gate == fault.gate for fault, result in zip(FAULTS, faults, strict=True)),
        },
        (
            gates_table(matrix.certificates),
            own_table(matrix.certificates),
            own_table(scheduled.certificates),
            named_table(everything),
            faults_table(faults),
        ),
        on,
    )


def certified(*request: str) -> Matrix:
    """What the command makes of a request, from nothing."""
    with tempfile.TemporaryDirectory(prefix="evenbench-certificates-") as folder:
        before, start = _children_s(), time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "harness", "certify", "--json", f"results_dir={folder}/results", *request],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        wall_s, cpu_s = time.perf_counter() - start, _children_s() - before
    if done.returncode not in (0, 1):  # 1: some certificate fails, which the page is to say
        raise RuntimeError(f"evenbench certify ended with status {done.returncode}")
    return Matrix(tuple(parse(Certificate, plain) for plain in json.loads(done.stdout)), wall_s, cpu_s)


def caught() -> Iterable[Caught]:
    """What became of each planted fault."""
    with tempfile.TemporaryDirectory(prefix="evenbench-faults-") as folder:
        processes = AdapterProcesses(Path(folder))
        try:
            for fault in FAULTS:
                yield planted.caught(fault, processes)
        finally:
            processes.close()


def gates_table(certificates: Sequence[Certificate]) -> Table:
    """The deviation at each gate, over all frameworks."""
    rows = [
        (
            c.model,
            c.optimizer,
            *(_number(_worst(c, gate)) for gate in GATES),
            "agrees" if c.passed else "FAILS",
        )
        for c in certificates
    ]
    parameters, *others = GATES
    return Table(
        "Largest deviation between frameworks at each gate, under the shared rule",
        ("model", "optimizer", f"{parameters} that differ", *others, "verdict"),
        tuple(rows),
    )


def own_table(certificates: Sequence[Certificate]) -> Table:
    """The largest difference between a framework's own optimizer and the shared rule in it."""
    frameworks = _frameworks(certificates)
    rows = []
    for c in certificates:
        cells = (
            f"{_number(c.native_check(f).deviation)} {c.verdict(f, 'native')}" if f in c.native else "-"
            for f in frameworks
        )
        rows.append((c.model, c.optimizer, *cells))
    return Table(
        "Largest difference in a loss or a weight over all steps, and the verdict",
        ("model", "optimizer", *frameworks),
        tuple(rows),
    )


def named_table(certificates: Sequence[Certificate]) -> Table:
    """Each deviation that has a name, its largest measured size, and the result of its proof."""
    rows = [
        (
            ", ".join(f"`{name}`" for name in deviation.names),
            "; ".join(MEANINGS[name] for name in deviation.names),
            ", ".join(deviation.frameworks),
            f"{_number(deviation.deviation)} ({deviation.where})",
            "-" if deviation.remainder is None else _number(deviation.remainder),
            deviation.proof,
        )
        for deviation in named_deviations(certificates)
    ]
    columns = ("name", "what it is", "frameworks", "from the rule", "from a rule with just this", "proof")
    return Table("Deviations that adapters name, the largest of all certificates", columns, tuple(rows))


def faults_table(results: Sequence[Caught]) -> Table:
    """Each planted fault, and the gate that was the first to see it."""
    rows = [
        (f.what, f.framework, f.network, f.rule, c.gate or "NONE", _number(c.deviation))
        for f, c in zip(FAULTS, results, strict=True)
    ]
    return Table(
        "The first gate to see each fault, and the deviation there",
        ("fault", "planted into", "network", "optimizer", "caught by", "deviation"),
        tuple(rows),
    )


def _sections(tables: Sequence[Table]) -> list[str]:
    gates, own, scheduled, named, faults = (table.markdown() for table in tables)
    paragraphs = (
        "## Every model with every optimizer",
        gates,
        "## The frameworks' own optimizers",
        "Each is checked against the shared rule inside its own framework, so that only the optimizer can "
        "deviate.",
        own,
        "Under `schedule=cosine`, where a velocity that carries the learning rate shows:",
        scheduled,
        named,
        "## Planted faults",
        "The test suite plants faults into the adapters, one at a time (`tests/support/planted/faults.py`), "
        "and requires that the gate responsible for each of them catches it. "
        f"`{planted.OWN}` is the comparison of the section above.",
        faults,
    )
    return [f"{part if part.startswith(('#', '**')) else fill(part, WIDTH)}\n" for part in paragraphs]


def _verdict(values: dict[str, Any]) -> str:
    verdict = "All agree" if values["passed"] else "They do NOT all agree"
    return (
        f"**{verdict}: the largest deviation is {_number(values['largest'])}. {values['caught']} of "
        f"{values['faults']} planted faults were caught.**\n"
    )


def _made(values: dict[str, Any], on: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in values["versions"].items())
    load = "{}, {}, {}".format(*on["load_average"])
    line = (
        f"Made on {' and '.join(values['made'])} with {versions}, Python {on['python']}. "
        f"{values['certificates']} certificates over {', '.join(values['frameworks'])} took "
        f"{values['wall_s']} s, and {values['cpu_s']} s of processor time in all processes together, on "
        f"{on['processor']} with {on['cores']} cores. The load at the start was {load} over 1, 5 and 15 "
        "minutes; other work on the same cores makes the first of the two times too long."
    )
    return f"{fill(line, WIDTH)}\n"


def _frameworks(certificates: Sequence[Certificate]) -> list[str]:
    return sorted({name for c in certificates for name in c.parties})


def _versions(certificates: Sequence[Certificate]) -> dict[str, str]:
    parties = [party for c in certificates for party in c.parties.values()]
    versions = {
        name: text for party in parties for name, text in party["versions"].items() if text != "unknown"
    }
    return dict(sorted(versions.items()))


def _worst(certificate: Certificate, gate: str) -> float:
    deviations = [g.deviation for c in certificate.comparisons for g in c.gates if g.name == gate]
    return max(deviations, default=float("nan"))


def _number(value: float) -> str:
    if math.isinf(value):
        return "not finite"
    return "0" if value == 0 else f"{value:.1e}"


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    sys.exit(command(write, "Certify everything, plant every fault and write docs/results/certificates.md."))
