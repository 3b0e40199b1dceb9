"""What every adapter has to do, in every execution: the protocol of `harness/core/adapter.py` as tests.

Frameworks are read from `conf/framework`, so a new one is tested without a change here. Numbers are compared
with `tests/support/numpy_training.py`, a training in NumPy, in float64 and to 1e-10: a larger difference is
wrong mathematics and not rounding. Every execution is compared with the same reference, so they agree too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from harness.core.training import weights as canonical
from tests.adapters.contract import ADAM, EXECUTIONS, PAIRS
from tests.support import adapter_cases, numpy_training
from tests.support.adapter_process import AdapterProcess, Adapters, frameworks
from tests.support.matrix import matrix
from tests.support.tasks import (
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


@pytest.mark.parametrize("framework", frameworks())
def test_executions_are_those_of_the_configuration(framework: str, adapters: Adapters) -> None:
    """Catches: a configuration that offers, or hides, an execution that the adapter doesn't have, or does."""
    config = frameworks()[framework]
    task = make_task(config.executions[0])
    reply = adapters(framework, "float64").call(
        "tests.support.adapter_cases:description", task=task, rule=ADAM
    )
    assert sorted(reply["executions"]) == sorted(config.executions)
    assert reply["environment"] and reply["settings"]


@pytest.mark.parametrize("framework", frameworks())
def test_an_impossible_execution_is_refused_with_those_that_work(framework: str, adapters: Adapters) -> None:
    """Catches: an execution that is silently replaced by another, and reported under the wrong name."""
    possible = frameworks()[framework].executions
    for execution in set(EXECUTIONS) - set(possible):
        message = adapters(framework, "float64").call(
            "tests.support.adapter_cases:refusal", task=make_task(execution), rule=ADAM
        )
        assert repr(execution) in message
        assert all(name in message for name in possible)


def test_weights_come_back_as_they_were_loaded(adapter_and_execution: tuple[AdapterProcess, str]) -> None:
    """Catches: a kernel that is loaded in one layout and read in another, a bias that is dropped; an epoch
    that is trained though there was none to train."""
    process, execution = adapter_and_execution
    task = make_task(execution)
    run = make_run(task, 0.02)
    (result,) = process.call(
        "tests.support.adapter_cases:train", task=task, rule=ADAM, runs=[run | {"orders": [], "rates": []}]
    )
    assert same(result["loaded"], run["weights"]) and same(result["weights"], run["weights"])
    assert not any(slot.any() for slot in result["state"]["slots"].values())


PRODUCTS = [(name, precision) for name in frameworks() for precision in ("float32", "float64", "bf16")]


@pytest.mark.parametrize(
    ("framework", "precision"),
    matrix(PRODUCTS, lambda case: case[1] != "bf16" or case[0] == "torch", several=True),
)
def test_products_are_timed_one_by_one_until_they_are_there(
    framework: str, precision: str, adapters: Adapters
) -> None:
    """Catches: products that are only asked for and not waited for (8 of the size are 2 GFLOP, which no core
    does in a millisecond), times that were not taken, one time for all of them."""
    small, large = adapters(framework, precision).call(
        "tests.support.adapter_cases:products", sizes=[64, 512], repeats=8
    )
    for *taken, whole in (small, large):
        assert len(taken) == 8 and all(second > 0 for second in taken)
        assert sum(taken) < whole
    assert sum(large[:-1]) > 1e-3


@pytest.mark.parametrize("fault", ["missing", "unknown", "shape"])
def test_weights_that_do_not_fit_are_refused(
    fault: str, adapter_and_execution: tuple[AdapterProcess, str]
) -> None:
    """Catches: a weight left at the framework's own initial value, or broadcast to a shape it hasn't."""
    process, execution = adapter_and_execution
    task = make_task(execution)
    weights = dict(make_run(task, 0.02)["weights"])
    match fault:
        case "missing":
            del weights["0.bias"]
        case "unknown":
            weights["7.kernel"] = weights["0.kernel"]
        case _:
            weights["0.bias"] = weights["0.bias"][:1]
    assert process.call("tests.support.adapter_cases:load_refusal", task=task, rule=ADAM, weights=weights)


@pytest.mark.parametrize("adapter_and_execution", PAIRS, ids="-".join, indirect=True)
@pytest.mark.parametrize("name", RULES)
def test_training_is_the_reference_s(name: str, adapter_and_execution: tuple[AdapterProcess, str]) -> None:
    """Catches: a wrong gradient or rule, batches out of order, a learning rate that isn't the step's own,
    bias correction that starts at the wrong step, and arithmetic in less than float64."""
    process, execution = adapter_and_execution
    task, rule = make_task(execution), shared(name)
    run = make_run(task, rule["learning_rate"])
    (result,) = process.call("tests.support.adapter_cases:train", task=task, rule=rule, runs=[run])
    losses, weights = expected(task, rule, run)
    deviation = canonical.compare(result["weights"], weights)
    assert deviation.largest <= BOUND, deviation
    assert losses_agree(result["losses"], losses)
    outputs, _ = numpy_training.forward(adapter_cases.network(task), weights, task["x"]["test"])
    assert np.abs(result["after"] - outputs).max() <= BOUND


def test_native_sgd_is_the_reference_s(adapter_and_execution: tuple[AdapterProcess, str]) -> None:
    """Catches: a native optimizer that is not the one that was asked for, or misses the step's rate."""
    process, execution = adapter_and_execution
    task, rule = make_task(execution), {"name": "sgd", "learning_rate": 0.1}
    run = make_run(task, 0.1)
    (result,) = process.call("tests.support.adapter_cases:train", task=task, rule=rule, runs=[run])
    losses, weights = expected(task, rule, run)
    assert canonical.compare(result["weights"], weights).largest <= BOUND
    assert losses_agree(result["losses"], losses)


def test_rates_are_those_of_the_step_wherever_the_count_begins(
    adapter_and_execution: tuple[AdapterProcess, str],
) -> None:
    """Catches: rates kept from the epoch before, though the steps are now counted from another one."""
    process, execution = adapter_and_execution
    task, rule = make_task(execution), {"name": "sgd", "learning_rate": 0.1}
    run = make_run(task, 0.1)
    state = {"steps": 1, "rate": 0.1, "slots": {}, "masks": {}}
    again = run | {"orders": run["orders"][:1], "rates": run["rates"][-1:], "again": True, "state": state}
    _, result = process.call("tests.support.adapter_cases:train", task=task, rule=rule, runs=[run, again])
    assert canonical.compare(result["weights"], expected(task, rule, again)[1]).largest <= BOUND


@pytest.mark.parametrize(("loss", "outputs"), [("mse", 2), ("binary_cross_entropy", 1), ("cross_entropy", 3)])
def test_losses_and_their_gradients(
    loss: str, outputs: int, adapter_and_execution: tuple[AdapterProcess, str]
) -> None:
    """Catches: a mean over the wrong axis, probabilities taken for logits, targets that broadcast."""
    process, execution = adapter_and_execution
    task, rule = make_task(execution, loss=loss, outputs=outputs), shared("sgd")
    run = make_run(task, 0.1)
    (result,) = process.call("tests.support.adapter_cases:train", task=task, rule=rule, runs=[run])
    losses, weights = expected(task, rule, run)
    assert losses_agree(result["losses"], losses)
    assert canonical.compare(result["weights"], weights).largest <= BOUND


def test_every_activation_and_flatten(adapter_and_execution: tuple[AdapterProcess, str]) -> None:
    """Catches: the framework's own slope of leaky ReLU, GELU by tanh, softmax over the wrong axis, a missing
    or second activation, a bias where there should be none, an axis order of flatten that isn't row-major."""
    process, execution = adapter_and_execution
    functions = ["relu", "sigmoid", "tanh", "gelu", "silu", "softmax", "linear"]
    layers: list[dict[str, Any]] = [{"kind": "dense", "units": 5, "use_bias": False}]
    for function in functions:
        layers += [{"kind": "activation", "function": function}, {"kind": "dense", "units": 5}]
    layers += [{"kind": "activation", "function": "leaky_relu", "slope": 0.2}]
    layers += [{"kind": "flatten"}, {"kind": "output", "use_bias": False}]
    task, rule = make_task(execution, layers=layers, in_shape=[3, 4]), shared("sgd")
    run = make_run(task, 0.5)
    (result,) = process.call("tests.support.adapter_cases:train", task=task, rule=rule, runs=[run])
    network = adapter_cases.network(task)
    for split, outputs in result["before"].items():
        expected_outputs, _ = numpy_training.forward(network, run["weights"], task["x"][split])
        assert outputs.shape == expected_outputs.shape
        assert np.abs(outputs - expected_outputs).max() <= BOUND
    _, weights = expected(task, rule, run)
    assert canonical.compare(result["weights"], weights).largest <= BOUND


def test_loading_again_starts_over(adapter_and_execution: tuple[AdapterProcess, str]) -> None:
    """Catches: optimizer state, step count or dropout stream left over from the run before, in the same
    trainer or in another one of the program, and programs that disturb each other."""
    process, execution = adapter_and_execution
    task, other = make_task(execution, layers=WITH_DROPOUT), make_task(execution)
    run = make_run(task, 0.02, seed=5)
    first, again = process.call(
        "tests.support.adapter_cases:train", task=task, rule=ADAM, runs=[run, run | {"again": True}]
    )
    process.call("tests.support.adapter_cases:train", task=other, rule=ADAM, runs=[make_run(other, 0.05)])
    (fresh,) = process.call("tests.support.adapter_cases:train", task=task, rule=ADAM, runs=[run])
    for result in (again, fresh):
        assert same(result["losses"], first["losses"])
        assert same(result["weights"], first["weights"])


def test_a_training_that_was_broken_off_leaves_nothing_behind(
    adapter_and_execution: tuple[AdapterProcess, str],
) -> None:
    """Catches: an exception of the harness (a divergence, an end that the shell asks for) that a framework's
    own loop swallows or turns into another one, or after which the next run is no fresh one."""
    process, execution = adapter_and_execution
    task, rule = make_task(execution), shared("adam")
    run = make_run(task, rule["learning_rate"])
    result = process.call("tests.support.adapter_cases:broken_then_again", task=task, rule=rule, run=run)
    losses, weights = expected(task, rule, run)
    assert result["caught"] == ["after 1"]
    assert canonical.compare(result["weights"], weights).largest <= BOUND
    assert losses_agree(result["losses"], losses)
    assert result["compilations"][0] == result["compilations"][1]


def test_the_seed_is_that_of_dropout(adapter_and_execution: tuple[AdapterProcess, str]) -> None:
    """Catches: masks that are the same whatever the seed is (or that a compiler made a constant of)."""
    process, execution = adapter_and_execution
    task = make_task(execution, layers=WITH_DROPOUT)
    run = make_run(task, 0.02, seed=5)
    first, second = process.call(
        "tests.support.adapter_cases:train", task=task, rule=ADAM, runs=[run, run | {"seed": 6}]
    )
    assert not same(first["weights"], second["weights"])


def test_the_order_of_batches_is_the_given_one(adapter_and_execution: tuple[AdapterProcess, str]) -> None:
    """Catches: a framework that shuffles by itself; shows that the bound sees one batch out of order."""
    process, execution = adapter_and_execution
    task = make_task(execution)
    run = make_run(task, 0.02)
    swapped = run["orders"].copy()
    swapped[1, [2, 3]] = swapped[1, [3, 2]]
    runs = [run, run | {"orders": swapped}]
    first, second = process.call("tests.support.adapter_cases:train", task=task, rule=ADAM, runs=runs)
    assert canonical.compare(first["weights"], second["weights"]).largest > 1e4 * BOUND
    assert canonical.compare(second["weights"], expected(task, ADAM, runs[1])[1]).largest <= BOUND


def test_a_step_at_rate_zero_changes_nothing(adapter_and_execution: tuple[AdapterProcess, str]) -> None:
    """Catches: one learning rate for the whole epoch, or the rate of another step."""
    process, execution = adapter_and_execution
    task = make_task(execution)
    run = make_run(task, 0.02)
    still, last = np.zeros((1, STEPS)), np.zeros((1, STEPS))
    last[0, -1] = 0.02
    runs = [run | {"orders": run["orders"][:1], "rates": rates} for rates in (still, last)]
    first, second = process.call("tests.support.adapter_cases:train", task=task, rule=ADAM, runs=runs)
    assert same(first["weights"], run["weights"])
    assert not same(second["weights"], run["weights"])
    losses, _ = expected(task, ADAM, runs[1])
    assert losses_agree(second["losses"], losses)


@pytest.mark.parametrize("impl", ["native", "shared"])
def test_other_numbers_compile_nothing(impl: str, adapter_and_execution: tuple[AdapterProcess, str]) -> None:
    """Catches: a learning rate, a seed or a weight decay that became a constant of the compiled program,
    which costs every trial of a sweep a compilation; and one that is stuck at its first value."""
    process, execution = adapter_and_execution
    task, rule = make_task(execution), shared("adamw") | {"impl": impl}
    run = make_run(task, 0.02)
    decayed = make_run(task, 0.03, seed=9, numbers={"learning_rate": 0.03, "weight_decay": 0.5})
    undecayed = make_run(task, 0.01, numbers={"weight_decay": 0.0})
    runs = [run, decayed, undecayed, run]
    results = process.call("tests.support.adapter_cases:train", task=task, rule=rule, runs=runs)
    counts = [result["compilations"] for result in results]
    assert counts == [counts[0]] * len(runs)
    assert counts[0] > 0 or execution in ("idiomatic", "eager")
    assert same(results[3]["weights"], results[0]["weights"])
    bound = BOUND if impl == "shared" else 1e-3  # native: where epsilon goes is the framework's own choice
    for asked, result in zip(runs, results, strict=True):
        assert canonical.compare(result["weights"], expected(task, rule, asked)[1]).largest <= bound


def test_dropout_drops_at_its_rate_and_scales_the_rest(
    adapter_and_execution: tuple[AdapterProcess, str],
) -> None:
    """Catches: keep probability taken for the rate, no scaling, one mask for all steps, dropout in predict.

    From zero weights, one step of SGD at rate 1 on one row of ones with target 1/2 gives kernel = the input
    as the last layer saw it: 0 or 1 / (1 - rate). The second step shows its mask in what changed.
    """
    process, execution = adapter_and_execution
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
    first, second = process.call("tests.support.adapter_cases:train", task=task, rule=rule, runs=[one, two])
    seen = first["weights"]["1.kernel"][:, 0]
    unmasked = seen != 0
    deviation = 5 * np.sqrt(rate * (1 - rate) / features)
    assert abs(unmasked.mean() - (1 - rate)) < deviation
    assert np.abs(seen[unmasked] - 1 / (1 - rate)).max() < 1e-6
    kept_then = second["weights"]["1.kernel"][:, 0] != seen
    assert abs(kept_then.mean() - (1 - rate)) < deviation
    assert abs((unmasked & kept_then).mean() - (1 - rate) ** 2) < deviation
    assert np.abs(first["after"] - seen.sum()).max() < 1e-6


@pytest.mark.parametrize("impl", ["native", "shared"])
@pytest.mark.parametrize(("framework", "execution"), PAIRS)
def test_float32_is_float32(impl: str, framework: str, execution: str, adapters: Adapters) -> None:
    """Catches: a float32 run that computes in float64, which would be a false timing, or in less."""
    task = make_task(execution, precision="float32")
    rule = {"name": "sgd", "learning_rate": 0.1, "impl": impl}
    run = make_run(task, 0.1)
    (result,) = adapters(framework, "float32").call(
        "tests.support.adapter_cases:train", task=task, rule=rule, runs=[run]
    )
    assert same(result["loaded"], run["weights"])
    assert {w.dtype.name for w in result["weights"].values()} == {"float32"}
    assert result["after"].dtype == np.float32
    assert all(of_epoch.dtype == np.float64 for of_epoch in result["losses"])
    losses, weights = expected(task, rule, run)
    assert 1e-9 < canonical.compare(result["weights"], weights).largest < 1e-5
    assert losses_agree(result["losses"], losses, 1e-5)
