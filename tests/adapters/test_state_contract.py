"""What every adapter has to do with state: resume, take over from another framework, freeze layers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from harness.core.training import weights as canonical
from harness.core.training.optimizers import Rule
from harness.core.training.training_state import State, velocities
from harness.core.validation import parse
from tests.adapters.contract import ADAM
from tests.support import adapter_cases, numpy_training
from tests.support.adapter_process import AdapterProcess
from tests.support.tasks import (
    BATCH,
    BOUND,
    EPOCHS,
    MLP,
    RULES,
    STEPS,
    WITH_DROPOUT,
    Run,
    Task,
    expected,
    losses_agree,
    make_run,
    make_task,
    same,
    shared,
)

HALF = EPOCHS // 2


def halves(task: Task, rule: dict[str, Any], **other: Any) -> tuple[Run, Run, Run]:
    """A run over all epochs, its first half, and its second, which still lacks weights and state."""
    run = make_run(task, rule["learning_rate"], **other)
    first, second = (
        run | {"orders": run["orders"][part], "rates": run["rates"][part]}
        for part in (slice(0, HALF), slice(HALF, None))
    )
    return run, first, second


@pytest.mark.parametrize("impl", ["native", "shared"])
@pytest.mark.parametrize("name", RULES)
def test_a_resumed_training_equals_the_unbroken_one(
    name: str, impl: str, adapter_and_execution: tuple[AdapterProcess, str]
) -> None:
    """Catches: a slot or a step count that is lost or rounded on the way; a slot read in another layout than
    it is written in; a table of rates that begins at the wrong step."""
    process, execution = adapter_and_execution
    _check_resumed(process, make_task(execution), shared(name) | {"impl": impl})


def test_running_means_and_masks_are_resumed(adapter_and_execution: tuple[AdapterProcess, str]) -> None:
    """Catches: a running mean or a stream of masks that is lost on the way, or begins again."""
    process, execution = adapter_and_execution
    layers = [{"kind": "dense", "units": 6}, {"kind": "batch_norm"}, *WITH_DROPOUT[1:]]
    _check_resumed(process, make_task(execution, layers=layers), ADAM)


def _check_resumed(process: AdapterProcess, task: Task, rule: dict[str, Any]) -> None:
    run, first, second = halves(task, rule, seed=5)
    whole, broken = process.call("tests.support.adapter_cases:train", task=task, rule=rule, runs=[run, first])
    assert broken["state"]["steps"] == HALF * STEPS
    second |= {"weights": broken["weights"], "state": broken["state"]}
    other = make_run(task, 0.03)  # whatever the program did in between
    _, went_on = process.call("tests.support.adapter_cases:train", task=task, rule=rule, runs=[other, second])
    assert same(went_on["losses"], whole["losses"][HALF:])
    assert same(went_on["weights"], whole["weights"])
    assert same(went_on["state"]["slots"], whole["state"]["slots"])
    assert went_on["state"]["steps"] == whole["state"]["steps"] == EPOCHS * STEPS


@pytest.mark.parametrize("name", RULES)
def test_the_state_is_the_reference_s(name: str, adapter_and_execution: tuple[AdapterProcess, str]) -> None:
    """Catches: a slot under another's name, in another layout or scaled, a count that is one off; and a
    training that can't resume from NumPy's state (a stand-in for every other framework's), or takes another
    step's rate because that training stopped in the middle of an epoch."""
    process, execution = adapter_and_execution
    task, rule = make_task(execution), shared(name)
    _, first, second = halves(task, rule)
    real = parse(Rule, rule)  # type: ignore[arg-type]
    data = (task["x"]["train"], task["y"]["train"])
    arguments = (adapter_cases.network(task), task["loss"], real)
    _, _, state = numpy_training.train(*arguments, first["weights"], *data, first["orders"], first["rates"])
    cut = first["orders"].reshape(1, -1, BATCH)[:, :-1], first["rates"].reshape(1, -1)[:, :-1]
    _, weights, stopped = numpy_training.train(*arguments, first["weights"], *data, *cut)
    losses, end, _ = numpy_training.train(
        *arguments, weights, *data, second["orders"], second["rates"], stopped
    )
    second |= {"weights": weights, "state": vars(stopped)}
    half, went_on = process.call(
        "tests.support.adapter_cases:train", task=task, rule=rule, runs=[first, second]
    )
    assert canonical.compare(half["state"]["slots"], state.slots).largest <= BOUND
    assert (half["state"]["steps"], half["state"]["rate"]) == (state.steps, state.rate)
    assert losses_agree(went_on["losses"], losses)
    assert canonical.compare(went_on["weights"], end).largest <= BOUND


@pytest.mark.parametrize("name", ["momentum", "nesterov", "adam", "rmsprop"])
def test_the_state_of_a_native_optimizer_is_that_of_the_rule(
    name: str, adapter_and_execution: tuple[AdapterProcess, str]
) -> None:
    """Catches: a native slot that goes by another slot's name, or a displacement taken for a velocity."""
    process, execution = adapter_and_execution
    task, rule = make_task(execution), shared(name) | {"impl": "native"}
    run = make_run(task, 0.02)
    run["rates"] = np.full_like(run["rates"], 1e-3)  # constant, and small: the paths hardly part
    (result,) = process.call("tests.support.adapter_cases:train", task=task, rule=rule, runs=[run])
    real = parse(Rule, rule)  # type: ignore[arg-type]
    data = (task["x"]["train"], task["y"]["train"], run["orders"], run["rates"])
    _, _, state = numpy_training.train(adapter_cases.network(task), task["loss"], real, run["weights"], *data)
    bound = BOUND if name in ("momentum", "nesterov") else 1e-4
    assert canonical.compare(velocities(State(**result["state"])), state.slots).largest <= bound


def test_a_state_that_does_not_fit_is_refused(adapter_and_execution: tuple[AdapterProcess, str]) -> None:
    """Catches: a slot that is left at zero because it went by another name, or broadcast."""
    process, execution = adapter_and_execution
    task = make_task(execution)
    run = make_run(task, 0.02) | {"orders": [], "rates": []}
    (result,) = process.call("tests.support.adapter_cases:train", task=task, rule=ADAM, runs=[run])
    state, weights = result["state"], run["weights"]
    refused = {"task": task, "rule": ADAM, "weights": weights}
    assert not process.call("tests.support.adapter_cases:load_refusal", state=state, **refused)
    for fault in ({"0.bias/m": np.zeros(1)}, {"9.bias/m": np.zeros(6)}):
        wrong = state | {"slots": state["slots"] | fault}
        assert next(iter(fault)) in process.call(
            "tests.support.adapter_cases:load_refusal", state=wrong, **refused
        )


def test_masks_that_cannot_be_resumed_are_new_ones(adapter_and_execution: tuple[AdapterProcess, str]) -> None:
    """Catches: a run that resumes another framework's and draws the masks of its beginning again."""
    process, execution = adapter_and_execution
    task, rule = make_task(execution, layers=WITH_DROPOUT), {"name": "sgd", "learning_rate": 1e-12}
    run = make_run(task, 1e-12, seed=5)
    start = run | {"orders": run["orders"][:1], "rates": run["rates"][:1]}
    elsewhere = {"steps": STEPS, "rate": 0.1, "slots": {}, "masks": {"elsewhere": np.zeros(2)}}
    runs = [start, start, start | {"state": elsewhere}]
    first, again, later = process.call("tests.support.adapter_cases:train", task=task, rule=rule, runs=runs)
    assert same(first["losses"], again["losses"])
    assert np.abs(first["losses"][0] - later["losses"][0]).max() > 1e-3


@pytest.mark.parametrize("impl", ["native", "shared"])
def test_frozen_layers_stay_as_they_are_and_the_rest_trains(
    impl: str, adapter_and_execution: tuple[AdapterProcess, str]
) -> None:
    """Catches: a frozen weight that is updated, or decayed; slots for it; a gradient that is lost for the
    layers before it; a program that is shared with the network that trains all of it."""
    process, execution = adapter_and_execution
    layers = [MLP[0], MLP[1], {"kind": "dense", "units": 5, "name": "middle"}, MLP[1], MLP[2]]
    rule = shared("adamw") | {"impl": impl}
    task, free = (make_task(execution, layers=layers, freeze=freeze) for freeze in (["middle"], []))
    run = make_run(task, rule["learning_rate"])
    process.call("tests.support.adapter_cases:train", task=free, rule=rule, runs=[run])
    (result,) = process.call("tests.support.adapter_cases:train", task=task, rule=rule, runs=[run])
    for weight, value in result["weights"].items():
        assert same(value, run["weights"][weight]) == weight.startswith("2."), weight
    slots = {key.rpartition("/")[0] for key in result["state"]["slots"]}
    assert slots <= {"0.kernel", "0.bias", "4.kernel", "4.bias"}
    losses, weights = expected(task, rule, run)
    bound = BOUND if impl == "shared" else 1e-2  # native: where epsilon goes is the framework's own choice
    assert canonical.compare(result["weights"], weights).largest <= bound
    assert losses_agree(result["losses"], losses, bound)


def test_a_frozen_batch_norm_is_in_evaluation_mode(adapter_and_execution: tuple[AdapterProcess, str]) -> None:
    """Catches: running statistics that move, or batch statistics that normalise, in a frozen BatchNorm.

    The dense layer before it, which trains, shows by its gradient which statistics were used.
    """
    process, execution = adapter_and_execution
    layers = [MLP[0], {"kind": "batch_norm", "epsilon": 1e-5}, *MLP[1:]]
    task, rule = make_task(execution, layers=layers, freeze=["1"]), shared("sgd")
    run = make_run(task, 0.1)
    start = run["weights"] | {"1.moving_mean": np.linspace(-1, 1, 6), "1.moving_variance": np.full(6, 2.0)}
    start |= {"1.gamma": np.linspace(0.5, 2, 6), "1.beta": np.linspace(-0.2, 0.2, 6)}
    (result,) = process.call(
        "tests.support.adapter_cases:train", task=task, rule=rule, runs=[run | {"weights": start}]
    )
    for name in ("gamma", "beta", "moving_mean", "moving_variance"):
        assert same(result["weights"][f"1.{name}"], start[f"1.{name}"])
    # the same by hand: a frozen BatchNorm is a scale and a shift, which two dense layers in a row can be
    scale = start["1.gamma"] / np.sqrt(2.0 + 1e-5)
    plain = make_task(execution, layers=[MLP[0], MLP[0], *MLP[1:]], freeze=["1"])
    weights = {name: value for name, value in start.items() if not name.startswith("1.")}
    shift = start["1.beta"] - start["1.moving_mean"] * scale
    weights |= {"1.kernel": np.diag(scale), "1.bias": shift}
    losses, end = expected(plain, rule, run | {"weights": weights})
    assert losses_agree(result["losses"], losses)
    for name in ("0.kernel", "0.bias", "3.kernel", "3.bias"):
        assert np.abs(result["weights"][name] - end[name]).max() <= BOUND
