"""The certificates page is complete. The command that writes it takes minutes, so tests only read the
page."""

from __future__ import annotations

import pytest

from harness.core.certificates import native_rules
from harness.core.certificates.cases import STEPS
from harness.core.certificates.gates import BOUND, GATES
from tests.support.compose import choices
from tests.support.pages import page_named
from tests.support.planted.faults import FAULTS

PAGE = page_named("certificates.md")
OUTDATED = "the page is out of date: run python -m tests.bench.write_certificates"


@pytest.fixture(scope="module")
def rows() -> list[list[str]]:
    """The cells of every table on the page."""
    lines = [line for line in PAGE.read_text("utf-8").splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_every_model_with_every_optimizer_is_on_the_page(rows: list[list[str]]) -> None:
    """Catches: a model, an optimizer or a framework added after the page was written, a failing
    certificate."""
    gates = {(row[0], row[1]): row for row in rows if len(row) == 2 + len(GATES) + 1}
    own = {(row[0], row[1]): row for row in rows if len(row) == 2 + len(choices("framework"))}
    assert {"model", *choices("model")} == {model for model, _ in gates}, OUTDATED
    for model in choices("model"):
        for optimizer in choices("optimizer"):
            assert (model, optimizer) in own, OUTDATED
            assert gates[model, optimizer][-1] == "agrees", OUTDATED
            assert all(float(cell) <= BOUND for cell in gates[model, optimizer][2:-1]), OUTDATED
            assert "fails" not in " ".join(own[model, optimizer]), OUTDATED
    assert own["model", "optimizer"][2:] == choices("framework"), OUTDATED


def test_every_deviation_on_the_page_is_proven(rows: list[list[str]]) -> None:
    """Catches: a named deviation that covers more than its name, or that has no rule."""
    named = [row for row in rows if row[0].startswith("`")]
    assert {row[0].strip("`") for row in named} == {name for _, name in native_rules.DEVIATING_RULES}, (
        OUTDATED
    )
    assert all(row[-1] == "proven" and float(row[-2]) <= BOUND for row in named), OUTDATED


def test_every_planted_fault_is_on_the_page_with_its_gate(rows: list[list[str]]) -> None:
    """Catches: an added fault, or one that a different gate catches than the page says."""
    on_page = {tuple(row[:5]) for row in rows}
    planted = {(f.what, f.framework, f.network, f.rule, f.gate) for f in FAULTS}
    assert not planted - on_page, OUTDATED
    assert f"{len(FAULTS)} of {len(FAULTS)} planted faults were caught" in _flat(), OUTDATED


def test_the_page_states_what_holds() -> None:
    """Catches: a bound or a number of steps that changed after the page was written."""
    assert f"made of {STEPS} training steps" in _flat() and f"The bound is {BOUND:g}" in _flat(), OUTDATED


def _flat() -> str:
    return " ".join(PAGE.read_text("utf-8").split())
