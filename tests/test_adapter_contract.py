"""What every adapter has to do, in every execution: the protocol of `harness/adapter.py` as tests.

Frameworks are found in `conf/framework`; one that is added is tested without a change here. Numbers are held
against `tests/reference.py`, a training in NumPy, in float64 and to 1e-10, so that a difference is wrong
mathematics and not rounding. As every execution is held against the same reference, they agree as well.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from harness import weights as canonical
from tests import cases, reference
from tests.lab import Lab, frameworks
from tests.tasks import (
    BOUND,
    RULES,
    STEPS,
    WITH_DROPOUT,
    expected,
    losses_agree,
    make_run,
    make_task,
    same,
    shared,
)

EXECUTIONS = ("idiomatic", "eager", "compiled", "epoch")
PAIRS = [(name, execution) for name, found in frameworks().items() for execution in found.executions]
ADAM = shared("adam")


@pytest.fixture(params=PAIRS, ids="-".join)
def place(request: pytest.FixtureRequest, lab: Callable[[str, str], Lab]) -> tuple[Lab, str]:
    """Each framework's lab in float64 with each of its executions on a CPU."""
    framework, execution = request.param
    return lab(framework, "float64"), execution


@pytest.mark.parametrize("framework", frameworks())
def test_executions_are_those_of_the_configuration(framework: str, lab: Callable[[str, str], Lab]) -> None:
    """Catches: a configuration that offers, or hides, an execution that the adapter doesn't have, or does."""
    found = frameworks()[framework]
    task = make_task(found.executions[0])
    said = lab(framework, "float64").call("tests.cases:description", task=task, rule=ADAM)
    assert sorted(said["executions"]) == sorted(found.executions)
    assert said["environment"] and said["settings"]


@pytest.mark.parametrize("framework", frameworks())
def test_an_impossible_execution_is_refused_with_those_that_work(
    framework: str, lab: Callable[[str, str], Lab]
) -> None:
    """Catches: an execution that is silently replaced by another, and reported under the wrong name."""
    possible = frameworks()[framework].executions
    for execution in set(EXECUTIONS) - set(possible):
        message = lab(framework, "float64").call("tests.cases:refusal", task=make_task(execution), rule=ADAM)
        assert repr(execution) in message
        assert all(name in message for name in possible)


def test_weights_come_back_as_they_were_loaded(place: tuple[Lab, str]) -> None:
    """Catches: a kernel that is loaded in one layout and read in another, a bias that is dropped."""
    lab, execution = place
    task = make_task(execution)
    run = make_run(task, 0.02)
    (result,) = lab.call("tests.cases:train", task=task, rule=ADAM, runs=[run | {"orders": [], "rates": []}])
    assert same(result["loaded"], run["weights"])


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("framework", frameworks())
def test_products_are_timed_one_by_one_until_they_are_there(
    framework: str, precision: str, lab: Callable[[str, str], Lab]
) -> None:
    """Catches: products that are only asked for and not waited for (8 of the size are 2 GFLOP, which no core
    does in a millisecond), times that were not taken, one time for all of them."""
    small, large = lab(framework, precision).call("tests.cases:products", sizes=[64, 512], repeats=8)
    for *taken, whole in (small, large):
        assert len(taken) == 8 and all(second > 0 for second in taken)
        assert sum(taken) < whole
    assert sum(large[:-1]) > 1e-3


@pytest.mark.parametrize("fault", ["missing", "unknown", "shape"])
def test_weights_that_do_not_fit_are_refused(fault: str, place: tuple[Lab, str]) -> None:
    """Catches: a weight left at the framework's own initial value, or broadcast to a shape it hasn't."""
    lab, execution = place
    task = make_task(execution)
    weights = dict(make_run(task, 0.02)["weights"])
    match fault:
        case "missing":
            del weights["0.bias"]
        case "unknown":
            weights["7.kernel"] = weights["0.kernel"]
        case _:
            weights["0.bias"] = weights["0.bias"][:1]
    assert lab.call("tests.cases:load_refusal", task=task, rule=ADAM, weights=weights)


@pytest.mark.parametrize("name", RULES)
def test_training_is_the_reference_s(name: str, place: tuple[Lab, str]) -> None:
    """Catches: a wrong gradient or rule, batches out of order, a learning rate that isn't the step's own,
    bias correction that starts at the wrong step, and arithmetic in less than float64."""
    lab, execution = place
    task, rule = make_task(execution), shared(name)
    run = make_run(task, rule["learning_rate"])
    (result,) = lab.call("tests.cases:train", task=task, rule=rule, runs=[run])
    losses, weights = expected(task, rule, run)
    deviation = canonical.compare(result["weights"], weights)
    assert deviation.largest <= BOUND, deviation
    assert losses_agree(result["losses"], losses)
    outputs, _ = reference.forward(cases.network(task), weights, task["x"]["test"])
    assert np.abs(result["after"] - outputs).max() <= BOUND


def test_native_sgd_is_the_reference_s(place: tuple[Lab, str]) -> None:
    """Catches: a native optimizer that is not the one that was asked for, or misses the step's rate."""
    lab, execution = place
    task, rule = make_task(execution), {"name": "sgd", "learning_rate": 0.1}
    run = make_run(task, 0.1)
    (result,) = lab.call("tests.cases:train", task=task, rule=rule, runs=[run])
    losses, weights = expected(task, rule, run)
    assert canonical.compare(result["weights"], weights).largest <= BOUND
    assert losses_agree(result["losses"], losses)


@pytest.mark.parametrize(("loss", "outputs"), [("mse", 2), ("binary_cross_entropy", 1), ("cross_entropy", 3)])
def test_losses_and_their_gradients(loss: str, outputs: int, place: tuple[Lab, str]) -> None:
    """Catches: a mean over the wrong axis, probabilities taken for logits, targets that broadcast."""
    lab, execution = place
    task, rule = make_task(execution, loss=loss, outputs=outputs), shared("sgd")
    run = make_run(task, 0.1)
    (result,) = lab.call("tests.cases:train", task=task, rule=rule, runs=[run])
    losses, weights = expected(task, rule, run)
    assert losses_agree(result["losses"], losses)
    assert canonical.compare(result["weights"], weights).largest <= BOUND


def test_every_activation_and_flatten(place: tuple[Lab, str]) -> None:
    """Catches: the framework's own slope of leaky ReLU, GELU by tanh, softmax over the wrong axis, a missing
    or second activation, a bias where there should be none, an axis order of flatten that isn't row-major."""
    lab, execution = place
    functions = ["relu", "sigmoid", "tanh", "gelu", "silu", "softmax", "linear"]
    layers: list[dict[str, Any]] = [{"kind": "dense", "units": 5, "use_bias": False}]
    for function in functions:
        layers += [{"kind": "activation", "function": function}, {"kind": "dense", "units": 5}]
    layers += [{"kind": "activation", "function": "leaky_relu", "slope": 0.2}]
    layers += [{"kind": "flatten"}, {"kind": "output", "use_bias": False}]
    task, rule = make_task(execution, layers=layers, in_shape=[3, 4]), shared("sgd")
    run = make_run(task, 0.5)
    (result,) = lab.call("tests.cases:train", task=task, rule=rule, runs=[run])
    network = cases.network(task)
    for split, outputs in result["before"].items():
        wanted, _ = reference.forward(network, run["weights"], task["x"][split])
        assert outputs.shape == wanted.shape
        assert np.abs(outputs - wanted).max() <= BOUND
    _, weights = expected(task, rule, run)
    assert canonical.compare(result["weights"], weights).largest <= BOUND


def test_loading_again_starts_over(place: tuple[Lab, str]) -> None:
    """Catches: optimizer state, step count or dropout stream left over from the run before, in the same
    trainer or in another one of the program, and programs that disturb each other."""
    lab, execution = place
    task, other = make_task(execution, layers=WITH_DROPOUT), make_task(execution)
    run = make_run(task, 0.02, seed=5)
    first, again = lab.call("tests.cases:train", task=task, rule=ADAM, runs=[run, run | {"again": True}])
    lab.call("tests.cases:train", task=other, rule=ADAM, runs=[make_run(other, 0.05)])
    (fresh,) = lab.call("tests.cases:train", task=task, rule=ADAM, runs=[run])
    for result in (again, fresh):
        assert same(result["losses"], first["losses"])
        assert same(result["weights"], first["weights"])


def test_the_seed_is_that_of_dropout(place: tuple[Lab, str]) -> None:
    """Catches: masks that are the same whatever the seed is (or that a compiler made a constant of)."""
    lab, execution = place
    task = make_task(execution, layers=WITH_DROPOUT)
    run = make_run(task, 0.02, seed=5)
    first, second = lab.call("tests.cases:train", task=task, rule=ADAM, runs=[run, run | {"seed": 6}])
    assert not same(first["weights"], second["weights"])


def test_the_order_of_batches_is_the_given_one(place: tuple[Lab, str]) -> None:
    """Catches: a framework that shuffles by itself; shows that the bound sees one batch out of order."""
    lab, execution = place
    task = make_task(execution)
    run = make_run(task, 0.02)
    swapped = run["orders"].copy()
    swapped[1, [2, 3]] = swapped[1, [3, 2]]
    runs = [run, run | {"orders": swapped}]
    first, second = lab.call("tests.cases:train", task=task, rule=ADAM, runs=runs)
    assert canonical.compare(first["weights"], second["weights"]).largest > 1e4 * BOUND
    assert canonical.compare(second["weights"], expected(task, ADAM, runs[1])[1]).largest <= BOUND


def test_a_step_at_rate_zero_changes_nothing(place: tuple[Lab, str]) -> None:
    """Catches: one learning rate for the whole epoch, or the rate of another step."""
    lab, execution = place
    task = make_task(execution)
    run = make_run(task, 0.02)
    still, last = np.zeros((1, STEPS)), np.zeros((1, STEPS))
    last[0, -1] = 0.02
    runs = [run | {"orders": run["orders"][:1], "rates": rates} for rates in (still, last)]
    first, second = lab.call("tests.cases:train", task=task, rule=ADAM, runs=runs)
    assert same(first["weights"], run["weights"])
    assert not same(second["weights"], run["weights"])
    losses, _ = expected(task, ADAM, runs[1])
    assert losses_agree(second["losses"], losses)


@pytest.mark.parametrize("impl", ["native", "shared"])
def test_other_numbers_compile_nothing(impl: str, place: tuple[Lab, str]) -> None:
    """Catches: a learning rate, a seed or a weight decay that became a constant of the compiled program,
    which costs every trial of a sweep a compilation; and one that is stuck at its first value."""
    lab, execution = place
    task, rule = make_task(execution), shared("adamw") | {"impl": impl}
    run = make_run(task, 0.02)
    decayed = make_run(task, 0.03, seed=9, numbers={"learning_rate": 0.03, "weight_decay": 0.5})
    undecayed = make_run(task, 0.01, numbers={"weight_decay": 0.0})
    runs = [run, decayed, undecayed, run]
    results = lab.call("tests.cases:train", task=task, rule=rule, runs=runs)
    counts = [result["compilations"] for result in results]
    assert counts == [counts[0]] * len(runs)
    assert counts[0] > 0 or execution in ("idiomatic", "eager")
    assert same(results[3]["weights"], results[0]["weights"])
    bound = BOUND if impl == "shared" else 1e-3  # native: where epsilon goes is the framework's own choice
    for asked, result in zip(runs, results, strict=True):
        assert canonical.compare(result["weights"], expected(task, rule, asked)[1]).largest <= bound


def test_dropout_drops_at_its_rate_and_scales_the_rest(place: tuple[Lab, str]) -> None:
    """Catches: keep probability taken for the rate, no scaling, one mask for all steps, dropout in predict.

    From zero weights, one step of SGD at rate 1 on one row of ones with target 1/2 gives kernel = the input
    as the last layer saw it: 0 or 1 / (1 - rate). The second step shows its mask in what changed.
    """
    lab, execution = place
    rate, features = 0.3, 4000
    task = make_task(
        execution,
        layers=[{"kind": "dropout", "rate": rate}, {"kind": "output", "use_bias": False}],
        in_shape=[features],
        outputs=1,
        loss="mse",
        batches=[1, 1],
    )
    task["x"] = {split: np.ones_like(x) for split, x in task["x"].items()}
    task["y"] = {split: np.full_like(y, 0.5) for split, y in task["y"].items()}
    order = np.zeros((1, 1, 1), dtype=np.int32)
    rule = {"name": "sgd", "learning_rate": 1.0}
    run = {"weights": {"1.kernel": np.zeros((features, 1))}, "seed": 4}
    one = run | {"orders": order, "rates": np.ones((1, 1))}
    two = run | {"orders": np.repeat(order, 2, 0), "rates": np.array([[1.0], [1e-3]])}
    first, second = lab.call("tests.cases:train", task=task, rule=rule, runs=[one, two])
    seen = first["weights"]["1.kernel"][:, 0]
    kept = seen != 0
    deviation = 5 * np.sqrt(rate * (1 - rate) / features)
    assert abs(kept.mean() - (1 - rate)) < deviation
    assert np.abs(seen[kept] - 1 / (1 - rate)).max() < 1e-6
    kept_then = second["weights"]["1.kernel"][:, 0] != seen
    assert abs(kept_then.mean() - (1 - rate)) < deviation
    assert abs((kept & kept_then).mean() - (1 - rate) ** 2) < deviation
    assert np.abs(first["after"] - seen.sum()).max() < 1e-6


@pytest.mark.parametrize("impl", ["native", "shared"])
@pytest.mark.parametrize(("framework", "execution"), PAIRS)
def test_float32_is_float32(
    impl: str, framework: str, execution: str, lab: Callable[[str, str], Lab]
) -> None:
    """Catches: a float32 run that computes in float64, which would be a false timing, or in less."""
    task = make_task(execution, precision="float32")
    rule = {"name": "sgd", "learning_rate": 0.1, "impl": impl}
    run = make_run(task, 0.1)
    (result,) = lab(framework, "float32").call("tests.cases:train", task=task, rule=rule, runs=[run])
    assert same(result["loaded"], run["weights"])
    assert {w.dtype.name for w in result["weights"].values()} == {"float32"}
    assert result["after"].dtype == np.float32
    assert all(of_epoch.dtype == np.float64 for of_epoch in result["losses"])
    losses, weights = expected(task, rule, run)
    assert 1e-9 < canonical.compare(result["weights"], weights).largest < 1e-5
    assert losses_agree(result["losses"], losses, 1e-5)
