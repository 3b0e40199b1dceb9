"""Update rules against torch.optim's single-tensor code in float64, schedules against their closed forms."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch

from harness.core.certificates import native_rules
from harness.core.training import optimizers, schedules
from harness.core.training.optimizers import Rule
from harness.core.training.schedules import Constant, Cosine, Exponential, Schedule, Step

STEPS = 20

PAIRS: dict[str, tuple[Rule, type[torch.optim.Optimizer], dict[str, Any]]] = {
    "sgd": (optimizers.SGD(1.0, weight_decay=0.03), torch.optim.SGD, {"weight_decay": 0.03}),
    "momentum": (
        optimizers.Momentum(1.0, momentum=0.8, weight_decay=0.03),
        torch.optim.SGD,
        {"momentum": 0.8, "weight_decay": 0.03},
    ),
    "nesterov": (
        optimizers.Nesterov(1.0, momentum=0.8, weight_decay=0.03),
        torch.optim.SGD,
        {"momentum": 0.8, "weight_decay": 0.03, "nesterov": True},
    ),
    "adam": (
        optimizers.Adam(1.0, beta_1=0.8, beta_2=0.99, epsilon=1e-3),
        torch.optim.Adam,
        {"betas": (0.8, 0.99), "eps": 1e-3},
    ),
    "adamw": (
        optimizers.AdamW(1.0, beta_1=0.8, beta_2=0.99, epsilon=1e-3, weight_decay=0.3),
        torch.optim.AdamW,
        {"betas": (0.8, 0.99), "eps": 1e-3, "weight_decay": 0.3},
    ),
    "rmsprop": (
        optimizers.RMSprop(1.0, rho=0.8, epsilon=1e-3),
        torch.optim.RMSprop,
        {"alpha": 0.8, "eps": 1e-3},
    ),
}


def gradient(w: Any) -> Any:
    """Of w⁴/4 - w, with operators only: small near w = 1, so that epsilon matters."""
    return w * w * w - 1.0


def apply(rule: Rule, w: Any, rates: Any) -> Any:
    slots = dict.fromkeys(rule.slots, 0.0 * w)
    for t, rate in enumerate(rates, start=1):
        w, slots = rule.update(w, gradient(w), slots, optimizers.numbers(rule), rate, float(t))
    return w


@pytest.mark.parametrize("name", PAIRS)
def test_rule_is_torch_s(name: str) -> None:
    """Catches: epsilon inside the root or before the bias correction, coupled decay taken for decoupled or
    the other way round, a velocity that carries the learning rate, a step count that starts at 0."""
    rule, kind, arguments = PAIRS[name]
    start = np.random.default_rng(0).normal(size=(3, 4))
    rates = 0.05 * np.linspace(1.0, 0.2, STEPS)
    parameter = torch.nn.Parameter(torch.tensor(start))
    optimizer = kind([parameter], foreach=False, **arguments)  # type: ignore[call-arg]
    for rate in rates:
        optimizer.param_groups[0]["lr"] = float(rate)
        parameter.grad = gradient(parameter.detach())
        optimizer.step()
    assert np.abs(apply(rule, start, rates) - parameter.detach().numpy()).max() < 1e-13


@pytest.mark.parametrize("name", PAIRS)
def test_rule_works_on_other_tensors(name: str) -> None:
    """Catches: a rule that uses more than operators, which the frameworks' tensors would not have."""
    rule, _, _ = PAIRS[name]
    rates = np.full(STEPS, 0.02)
    start = np.random.default_rng(0).normal(size=5)
    by_torch = apply(rule, torch.tensor(start), rates)
    assert np.abs(by_torch.numpy() - apply(rule, start, rates)).max() < 1e-13


def test_a_deviating_rule_differs_in_what_it_is_named_for() -> None:
    """Catches: a rule that excuses more than its name says: without the deviation it must equal the paper's
    rule."""
    start = np.random.default_rng(0).normal(size=(3, 4))
    falling, constant = 0.05 * np.linspace(1.0, 0.2, STEPS), np.full(STEPS, 0.02)
    for name, deviation in native_rules.DEVIATING_RULES:
        paper = PAIRS[name][0]
        rule = native_rules.deviating_rule(paper, [deviation])
        assert rule is not None and optimizers.numbers(rule) == optimizers.numbers(paper)
        assert rule.impl == "shared" and rule.learning_rate == paper.learning_rate
        assert np.abs(apply(rule, start, falling) - apply(paper, start, falling)).max() > 1e-5, name
        if "epsilon" in deviation:  # without one there is no place to put it
            rule, paper = (dataclasses.replace(each, epsilon=0.0) for each in (rule, paper))  # type: ignore[call-arg]
            assert np.abs(apply(rule, start, falling) - apply(paper, start, falling)).max() < 1e-13, name
        else:
            assert np.abs(apply(rule, start, constant) - apply(paper, start, constant)).max() < 1e-13, name


def test_what_is_not_written_as_a_rule_has_none() -> None:
    """Catches: a deviation that counts as proven because another one of the same optimizer is, or the same
    deviation of another rule."""
    adam, inside = PAIRS["adam"][0], "epsilon_inside_bias_correction"
    assert isinstance(native_rules.deviating_rule(adam, [inside]), native_rules.EpsilonHatAdam)
    assert native_rules.deviating_rule(adam, [inside, "squares_each_occurrence_of_a_token"]) is None
    assert native_rules.deviating_rule(adam, ["epsilon_inside_root"]) is None
    assert native_rules.deviating_rule(adam, []) is None


def test_every_rule_is_tested() -> None:
    """Catches: a new rule without a test."""
    assert {type(rule) for rule, _, _ in PAIRS.values()} == set(Rule.__args__)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("schedule", "factor"),
    [
        (Constant(), lambda e: 1.0),
        (Cosine(), lambda e: (1 + math.cos(math.pi * e / 8)) / 2),
        (Cosine(final_fraction=0.25), lambda e: 0.25 + 0.75 * math.cos(math.pi * e / 16) ** 2),
        (Step(every_epochs=3, decay_factor=0.5), lambda e: 0.5 ** (e // 3)),
        (Exponential(decay_factor=0.9), lambda e: math.exp(e * math.log(0.9))),
    ],
)
def test_schedule_is_its_closed_form(schedule: Schedule, factor: Any) -> None:
    """Catches: a rate that is constant within an epoch where it should not be, one step early or late, or
    that has reached its end before the last step."""
    epochs, steps = 8, 5
    rates = schedules.learning_rates(schedule, 0.4, epochs, steps)
    expected = [[0.4 * factor(epoch + step / steps) for step in range(steps)] for epoch in range(epochs)]
    assert rates.dtype == np.float64
    assert np.allclose(rates, expected, rtol=1e-13, atol=0)


@pytest.mark.parametrize("schedule", [Constant(1.5), Cosine(1.5), Step(1.5, 2.0, 0.1), Exponential(1.5, 0.9)])
def test_warm_up_is_linear_and_starts_the_schedule_s_clock_when_it_ends(schedule: Schedule) -> None:
    """Catches: a first step at rate 0, a warm-up that never reaches the full rate, and a schedule that runs
    during the warm-up or past the end of training."""
    epochs, steps, warmup = 6, 4, 6
    rates = schedules.learning_rates(schedule, 2.0, epochs, steps).ravel()
    assert np.allclose(rates[:warmup], [2.0 * k / warmup for k in range(1, warmup + 1)], rtol=1e-15)
    after = (np.arange(epochs * steps - warmup) / steps).astype(np.float64)
    assert np.array_equal(rates[warmup:], 2.0 * schedule.factor(after, 4.5))
    assert rates[warmup] == 2.0
    if isinstance(schedule, Cosine):
        assert 0 < rates[-1] < 0.05 * rates[warmup]


def test_warm_up_longer_than_the_training_ends_with_it() -> None:
    """Catches: a warm-up that is longer than the training, which would give too many rates or an error."""
    rates = schedules.learning_rates(Cosine(warmup_epochs=50), 1.0, 2, 3)
    assert np.allclose(rates.ravel(), np.arange(1, 7) / 6)


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("impl", ["native", "shared"])
def test_programs_are_shared_by_rules_that_differ_in_inputs_only(name: str, impl: Any) -> None:
    """Catches: a sweep over learning rates that compiles for each, and a program taken for one whose
    constants are others."""
    rule = dataclasses.replace(PAIRS[name][0], impl=impl)
    inputs = {"learning_rate"} | ({"weight_decay"} & optimizers.numbers(rule).keys())
    if impl == "shared":
        inputs |= optimizers.numbers(rule).keys()
    for field in (*optimizers.numbers(rule), "learning_rate"):
        other = dataclasses.replace(rule, **{field: 0.5})
        one_program = optimizers.program_rule(other) == optimizers.program_rule(rule)
        assert one_program == (field in inputs), field
    native = dataclasses.replace(rule, impl="native")
    assert (optimizers.program_rule(native) == optimizers.program_rule(rule)) == (impl == "native")
