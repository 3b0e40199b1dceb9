"""docs/certificates.md is made by a command that takes minutes: here only that nothing is missing on it."""

from __future__ import annotations

import pytest

from harness.core.certificates import native_rules
from harness.core.certificates.cases import STEPS
from harness.core.certificates.gates import BOUND, GATES
from tests.support.compose import choices
from tests.support.paths import ROOT
from tests.support.planted.faults import FAULTS

PAGE = ROOT / "docs" / "certificates.md"
AGAIN = "make it anew: python -m tests.bench.write_certificates"


@pytest.fixture(scope="module")
def rows() -> list[list[str]]:
    """The cells of every table on the page."""
    lines = [line for line in PAGE.read_text("utf-8").splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_every_model_with_every_optimizer_is_on_the_page(rows: list[list[str]]) -> None:
    """Catches: a model, an optimizer or a framework that came after the page, a certificate that fails."""
    gates = {(row[0], row[1]): row for row in rows if len(row) == 2 + len(GATES) + 1}
    own = {(row[0], row[1]): row for row in rows if len(row) == 2 + len(choices("framework"))}
    assert {"model", *choices("model")} == {model for model, _ in gates}, AGAIN
    for model in choices("model"):
        for optimizer in choices("optimizer"):
            assert (model, optimizer) in own, AGAIN
            assert gates[model, optimizer][-1] == "agrees", AGAIN
            assert all(float(cell) <= BOUND for cell in gates[model, optimizer][2:-1]), AGAIN
            assert "fails" not in " ".join(own[model, optimizer]), AGAIN
    assert own["model", "optimizer"][2:] == choices("framework"), AGAIN


def test_every_deviation_on_the_page_is_proven(rows: list[list[str]]) -> None:
    """Catches: a named deviation that covers more than its name, or that no rule is written for."""
    named = [row for row in rows if row[0].startswith("`")]
    assert {row[0].strip("`") for row in named} == {name for _, name in native_rules.WRITTEN}, AGAIN
    assert all(row[-1] == "proven" and float(row[-2]) <= BOUND for row in named), AGAIN


def test_every_planted_fault_is_on_the_page_with_its_gate(rows: list[list[str]]) -> None:
    """Catches: a fault that was added, or that another gate catches now than the page says."""
    found = {tuple(row[:5]) for row in rows}
    wanted = {(f.what, f.framework, f.network, f.rule, f.gate) for f in FAULTS}
    assert not wanted - found, AGAIN
    assert f"{len(FAULTS)} of {len(FAULTS)} planted faults were caught" in _flat(), AGAIN


def test_the_page_states_what_holds() -> None:
    """Catches: a bound or a number of steps that was changed since."""
    assert f"made of {STEPS} training steps" in _flat() and f"The bound is {BOUND:g}" in _flat(), AGAIN


def _flat() -> str:
    return " ".join(PAGE.read_text("utf-8").split())
