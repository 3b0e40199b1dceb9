"""Faults planted into the real adapters: each must be caught, by the gate that is there for it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from harness.core.certificates import gates
from tests.support.adapter_process import Adapters
from tests.support.matrix import matrix
from tests.support.planted import faults
from tests.support.planted.faults import FAULTS, Fault

NEEDED = 20
CORE = {(fault.framework, fault.gate): fault for fault in reversed(FAULTS)}
"""The first fault of each framework and gate."""


def is_core(fault: Fault) -> bool:
    return CORE[fault.framework, fault.gate] == fault


@pytest.mark.parametrize(
    "fault", matrix(FAULTS, is_core), ids=lambda fault: f"{fault.framework}-{fault.plant}"
)
def test_a_planted_fault_is_caught(fault: Fault, adapters: Adapters) -> None:
    """Catches: a gate that cannot fail, or one that notices only what an earlier gate should have."""
    check = faults.caught(fault, adapters)
    assert check.gate == fault.gate, check


CORE_SOUND = {(fault.framework, fault.network, fault.rule) for fault in CORE.values()}
SOUND = sorted({(fault.framework, fault.network, fault.rule) for fault in FAULTS if fault.gate != faults.OWN})


@pytest.mark.parametrize(
    ("framework", "network", "rule"), matrix(SOUND, CORE_SOUND.__contains__, several=True)
)
def test_without_the_fault_every_gate_is_passed(
    framework: str, network: str, rule: str, adapters: Adapters
) -> None:
    """Catches: a fault that seems to be caught because the network fails the certificate anyway, or a fault
    that is still there after its test."""
    case = faults.case(network, rule)
    sound, other = (faults.trace(adapters(name, "float64"), case) for name in ("torch", framework))
    check = gates.compare("torch", sound, framework, other)
    assert check.passed, check


SOUND_OWN = sorted({(fault.framework, fault.rule) for fault in FAULTS if fault.gate == faults.OWN})


@pytest.mark.parametrize(("framework", "rule"), SOUND_OWN)
def test_without_the_fault_the_own_optimizer_keeps_the_bound(
    framework: str, rule: str, adapters: Adapters
) -> None:
    """Catches: the same where the framework's own optimizer is compared; a deviation that is not named, or
    that the rule which is written for its name doesn't account for."""
    check = faults.own(adapters(framework, "float64"), faults.case("dense", rule))
    if framework == "torch":
        assert check.verdict == "exact" and not check.known, check
        return
    assert check.verdict == "deviates" and check.known and not check.unproven, check
    assert check.remainder is not None and check.remainder <= gates.BOUND < 1e-6 < check.deviation, check


@pytest.mark.parametrize("rule", ["adam", "rmsprop"])
def test_what_no_rule_is_written_for_is_unproven(rule: str, adapters: Adapters) -> None:
    """Catches: a proof that is claimed where there is none. Keras' `fit` on TensorFlow squares the rows of an
    embedding's gradient one by one, which no rule for dense gradients does."""
    check = faults.own(adapters("keras", "float64"), faults.case("tokens", rule), execution="idiomatic")
    assert check.verdict == "deviates" and check.unproven and len(check.known) == 2, check
    dense = faults.own(adapters("keras", "float64"), faults.case("dense", rule), execution="idiomatic")
    assert dense.verdict == "deviates" and not dense.unproven and len(dense.known) == 1, dense


def test_at_a_constant_rate_a_velocity_may_carry_it(adapters: Adapters) -> None:
    """Catches: a deviation that is named for a run in which it can't show."""
    traced = faults.case("dense", "momentum")
    traced = replace(traced, rates=(traced.rates[0],) * len(traced.rates))
    check = faults.own(adapters("keras", "float64"), traced)
    assert check.verdict == "exact" and not check.known, check


def test_every_gate_has_faults_to_catch() -> None:
    """Catches: a gate that nothing shows to work."""
    assert len(FAULTS) >= NEEDED
    assert {fault.gate for fault in FAULTS} == {*gates.GATES, faults.OWN}
    names = [(fault.framework, fault.plant) for fault in FAULTS]
    assert len(set(names)) == len(names)
