"""What every adapter has to do, in every execution: the protocol of `harness/core/adapter.py` as tests.

Frameworks are found in `conf/framework`; one that is added is tested without a change here. Numbers are held
against `tests/support/numpy_training.py`, a training in NumPy, in float64 and to 1e-10, so that a difference
is wrong mathematics and not rounding. As every execution is held against the same reference, they agree as
well.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from harness.core.training import weights as canonical
from harness.core.training.optimizers import Rule
from harness.core.training.training_state import State, velocities
from harness.core.validation import parse
from tests.support import adapter_cases, numpy_training
from tests.support.adapter_process import AdapterProcess, Adapters, frameworks
from tests.support.matrix import matrix
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

EXECUTIONS = ("idiomatic", "eager", "compiled", "epoch")
PAIRS = [(name, execution) for name, found in frameworks().items() for execution in found.executions]
ADAM = shared("adam")
HALF = EPOCHS // 2


CORE = {("torch", "eager"), ("keras", "compiled"), ("keras_jax", "compiled"), ("keras_torch", "eager")}
"""One execution of each framework: `make test` runs the other ones in a few tests only."""


@pytest.fixture(params=matrix(PAIRS, CORE.__contains__), ids="-".join)
def adapter_and_execution(request: pytest.FixtureRequest, adapters: Adapters) -> tuple[AdapterProcess, str]:
    """Each framework's lab in float64 with each of its executions on a CPU."""
    framework, execution = request.param
    return adapters(framework, "float64"), execution


@pytest.mark.parametrize("framework", frameworks())
def test_executions_are_those_of_the_configuration(framework: str, adapters: Adapters) -> None:
    """Catches: a configuration that offers, or hides, an execution that the adapter doesn't have, or does."""
    found = frameworks()[framework]
    task = make_task(found.executions[0])
    said = adapters(framework, "float64").call(
        "tests.support.adapter_cases:description", task=task, rule=ADAM
    )
    assert sorted(said["executions"]) == sorted(found.executions)
    assert said["environment"] and said["settings"]


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


@pytest.mark.parametrize("precision", ["float32", "float64", "bf16"])
@pytest.mark.parametrize("framework", frameworks())
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
        wanted, _ = numpy_training.forward(network, run["weights"], task["x"][split])
        assert outputs.shape == wanted.shape
        assert np.abs(outputs - wanted).max() <= BOUND
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
    found = process.call("tests.support.adapter_cases:broken_then_again", task=task, rule=rule, run=run)
    losses, weights = expected(task, rule, run)
    assert found["caught"] == ["after 1"]
    assert canonical.compare(found["weights"], weights).largest <= BOUND
    assert losses_agree(found["losses"], losses)
    assert found["compilations"][0] == found["compilations"][1]


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
    kept = seen != 0
    deviation = 5 * np.sqrt(rate * (1 - rate) / features)
    assert abs(kept.mean() - (1 - rate)) < deviation
    assert np.abs(seen[kept] - 1 / (1 - rate)).max() < 1e-6
    kept_then = second["weights"]["1.kernel"][:, 0] != seen
    assert abs(kept_then.mean() - (1 - rate)) < deviation
    assert abs((kept & kept_then).mean() - (1 - rate) ** 2) < deviation
    assert np.abs(first["after"] - seen.sum()).max() < 1e-6


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
def test_a_training_that_goes_on_is_the_unbroken_one(
    name: str, impl: str, adapter_and_execution: tuple[AdapterProcess, str]
) -> None:
    """Catches: a slot or a step count that is lost or rounded on the way; a slot read in another layout than
    it is written in; a table of rates that begins at the wrong step."""
    process, execution = adapter_and_execution
    _goes_on(process, make_task(execution), shared(name) | {"impl": impl})


def test_running_means_and_masks_go_on(adapter_and_execution: tuple[AdapterProcess, str]) -> None:
    """Catches: a running mean or a stream of masks that is lost on the way, or begins again."""
    process, execution = adapter_and_execution
    layers = [{"kind": "dense", "units": 6}, {"kind": "batch_norm"}, *WITH_DROPOUT[1:]]
    _goes_on(process, make_task(execution, layers=layers), ADAM)


def _goes_on(process: AdapterProcess, task: Task, rule: dict[str, Any]) -> None:
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
    training that can't go on from NumPy's state (as a stand-in for every other framework's), or takes another
    step's rate because that one stopped in the middle of an epoch."""
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
    (found,) = process.call("tests.support.adapter_cases:train", task=task, rule=rule, runs=[run])
    real = parse(Rule, rule)  # type: ignore[arg-type]
    data = (task["x"]["train"], task["y"]["train"], run["orders"], run["rates"])
    _, _, state = numpy_training.train(adapter_cases.network(task), task["loss"], real, run["weights"], *data)
    bound = BOUND if name in ("momentum", "nesterov") else 1e-4
    assert canonical.compare(velocities(State(**found["state"])), state.slots).largest <= bound


def test_a_state_that_does_not_fit_is_refused(adapter_and_execution: tuple[AdapterProcess, str]) -> None:
    """Catches: a slot that is left at zero because it went by another name, or broadcast."""
    process, execution = adapter_and_execution
    task = make_task(execution)
    run = make_run(task, 0.02) | {"orders": [], "rates": []}
    (found,) = process.call("tests.support.adapter_cases:train", task=task, rule=ADAM, runs=[run])
    state, weights = found["state"], run["weights"]
    refused = {"task": task, "rule": ADAM, "weights": weights}
    assert not process.call("tests.support.adapter_cases:load_refusal", state=state, **refused)
    for fault in ({"0.bias/m": np.zeros(1)}, {"9.bias/m": np.zeros(6)}):
        wrong = state | {"slots": state["slots"] | fault}
        assert next(iter(fault)) in process.call(
            "tests.support.adapter_cases:load_refusal", state=wrong, **refused
        )


def test_masks_that_cannot_go_on_are_new_ones(adapter_and_execution: tuple[AdapterProcess, str]) -> None:
    """Catches: a run that goes on from another framework's and draws the masks of its beginning again."""
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
    (found,) = process.call("tests.support.adapter_cases:train", task=task, rule=rule, runs=[run])
    for weight, value in found["weights"].items():
        assert same(value, run["weights"][weight]) == weight.startswith("2."), weight
    slots = {key.rpartition("/")[0] for key in found["state"]["slots"]}
    assert slots <= {"0.kernel", "0.bias", "4.kernel", "4.bias"}
    losses, weights = expected(task, rule, run)
    bound = BOUND if impl == "shared" else 1e-2  # native: where epsilon goes is the framework's own choice
    assert canonical.compare(found["weights"], weights).largest <= bound
    assert losses_agree(found["losses"], losses, bound)


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
    (found,) = process.call(
        "tests.support.adapter_cases:train", task=task, rule=rule, runs=[run | {"weights": start}]
    )
    for name in ("gamma", "beta", "moving_mean", "moving_variance"):
        assert same(found["weights"][f"1.{name}"], start[f"1.{name}"])
    # the same by hand: a frozen BatchNorm is a scale and a shift, which two dense layers in a row can be
    scale = start["1.gamma"] / np.sqrt(2.0 + 1e-5)
    plain = make_task(execution, layers=[MLP[0], MLP[0], *MLP[1:]], freeze=["1"])
    weights = {name: value for name, value in start.items() if not name.startswith("1.")}
    shift = start["1.beta"] - start["1.moving_mean"] * scale
    weights |= {"1.kernel": np.diag(scale), "1.bias": shift}
    losses, end = expected(plain, rule, run | {"weights": weights})
    assert losses_agree(found["losses"], losses)
    for name in ("0.kernel", "0.bias", "3.kernel", "3.bias"):
        assert np.abs(found["weights"][name] - end[name]).max() <= BOUND


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
