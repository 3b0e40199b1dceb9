"""What every adapter has to compute for each layer kind: `tests/support/numpy_forward.py`, in float64.

The forward pass is compared with NumPy to 1e-12, gradients against differences of NumPy's loss, and the
executions against one another. Frameworks are found in `conf/framework`; one that is added is tested without
a change here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from harness.core.network import initialisers
from harness.core.training import losses
from harness.core.training import weights as canonical
from tests.adapters.contract import COMPILES_LEAST, PAIRS
from tests.support import adapter_cases
from tests.support.adapter_process import AdapterProcess, Adapters, frameworks
from tests.support.matrix import matrix
from tests.support.networks import FLAT, KINDS, ZOO, network_of, random_weights, task_of
from tests.support.numpy_forward import forward
from tests.support.paths import ROOT
from tests.support.tasks import BATCH, BOUND, Task, losses_agree, same, shared

EXACT = 1e-12
MODELS = sorted(path.stem for path in (ROOT / "conf/model").glob("*.yaml"))
FIRST_ROWS = np.arange(BATCH, dtype=np.int32).reshape(1, 1, BATCH)
SGD = shared("sgd") | {"weight_decay": 0.0}


@pytest.fixture(params=matrix(frameworks(), lambda name: name not in COMPILES_LEAST))
def stepwise(request: pytest.FixtureRequest, adapters: Adapters) -> tuple[AdapterProcess, str]:
    """A process of each framework in float64, with the execution that compiles least."""
    executions = frameworks()[request.param].executions
    return adapters(request.param, "float64"), "eager" if "eager" in executions else executions[0]


def one_step(process: AdapterProcess, task: Task, weights: dict[str, Any]) -> Any:
    """What one step of SGD at rate 1 on the first rows leaves."""
    run = {"weights": weights, "orders": FIRST_ROWS, "rates": np.ones((1, 1))}
    (result,) = process.call("tests.support.adapter_cases:train", task=task, rule=SGD, runs=[run])
    return result


def lengths_of(task: Task, split: str) -> Any:
    """The lengths of a split, or None."""
    return task["lengths"][split] if "lengths" in task else None


@pytest.mark.parametrize("name", KINDS)
def test_layer_is_the_reference_s(name: str, stepwise: tuple[AdapterProcess, str]) -> None:
    """Catches: gates or axes in another order, a bias dropped or doubled, uneven padding on the wrong side, a
    framework's own epsilon, scores that aren't scaled, a mask upside down, a state of a padded step, a
    backward direction that starts in the padding; gradients of the wrong thing, a frozen weight that is
    trained or the reverse; running statistics with the unbiased variance or the other momentum."""
    process, execution = stepwise
    task = task_of(KINDS[name], execution)
    network = network_of(KINDS[name])
    weights = random_weights(network)
    result = one_step(process, task, weights)
    assert same(result["loaded"], weights)

    for split, outputs in result["before"].items():
        expected_result, _ = forward(network, weights, task["x"][split], lengths_of(task, split))
        assert outputs.shape == expected_result.shape
        assert np.abs(outputs - expected_result).max() <= EXACT
    _check_step(task, weights, result)
    expected_result, _ = forward(network, result["weights"], task["x"]["test"], lengths_of(task, "test"))
    assert np.abs(result["after"] - expected_result).max() <= EXACT


def _check_step(task: Task, weights: dict[str, Any], result: dict[str, Any]) -> None:
    """The loss, the gradient of every weight along a random direction, and the running statistics."""
    network, rows = adapter_cases.network(task), FIRST_ROWS[0, 0]
    lengths = None if lengths_of(task, "train") is None else lengths_of(task, "train")[rows]

    def loss(of_weights: dict[str, Any]) -> float:
        outputs, _ = forward(network, of_weights, task["x"]["train"][rows], lengths, training=True)
        return losses.value(task["loss"], outputs, task["y"]["train"][rows])

    assert abs(float(result["losses"][0][0]) - loss(weights)) <= EXACT
    _, statistics = forward(network, weights, task["x"]["train"][rows], lengths, training=True)
    random, epsilon = np.random.default_rng(2), 1e-5
    for name, param in network.params().items():
        if not param.trainable:
            assert np.abs(result["weights"][name] - statistics[name]).max() <= EXACT, name
            continue
        gradient = weights[name] - result["weights"][name]
        assert np.abs(gradient).max() > 0, name
        direction = random.normal(size=param.shape)
        above, below = (
            loss(weights | {name: weights[name] + sign * epsilon * direction}) for sign in (1, -1)
        )
        slope = (above - below) / (2 * epsilon)
        assert abs((gradient * direction).sum() - slope) <= 1e-6 * np.linalg.norm(gradient), name


@pytest.mark.parametrize("name", [name for name, case in KINDS.items() if case.get("padded")])
def test_padding_changes_nothing(name: str, stepwise: tuple[AdapterProcess, str]) -> None:
    """Catches: a layer that looks at padded steps, or at how many there are."""
    if FLAT in KINDS[name]["layers"]:
        pytest.skip("its size is that of the padded sequence")
    process, execution = stepwise
    task = task_of(KINDS[name], execution)
    weights = random_weights(network_of(KINDS[name]))
    steps = task["in_shape"][0]
    dirty = {split: x.copy() for split, x in task["x"].items()}
    longer = {}
    for split, x in dirty.items():
        padding = np.arange(steps) >= task["lengths"][split][:, None]
        x[padding] = 3.0 if "vocabulary" in task else 1e3
        longer[split] = np.concatenate([task["x"][split], np.zeros_like(x[:, :2])], 1)
    clean = one_step(process, task, weights)
    changes = {"x": dirty}, {"x": longer, "in_shape": [steps + 2, *task["in_shape"][1:]]}
    for change in changes:
        other = one_step(process, task | change, weights)
        assert np.abs(other["before"]["test"] - clean["before"]["test"]).max() <= EXACT
        assert canonical.compare(other["weights"], clean["weights"]).largest <= EXACT


@pytest.mark.parametrize(
    "layer",
    [
        {"kind": "attention", "heads": 2, "causal": True},
        {"kind": "conv1d", "filters": 4, "padding": "causal"},
        {"kind": "lstm", "units": 4},
    ],
    ids=lambda layer: str(layer["kind"]),
)
def test_causal_layers_do_not_look_ahead(layer: dict[str, Any], stepwise: tuple[AdapterProcess, str]) -> None:
    """Catches: a causal mask that is transposed or shifted, padding at both ends."""
    process, execution = stepwise
    steps, at = 6, 3
    tree = [layer, {"kind": "reconstruction", "dense": False}]
    case = {"in_shape": [steps, 4], "layers": tree, "outputs": steps * 4, "loss": "mse"}
    task = task_of(case, execution)
    changed = {split: x.copy() for split, x in task["x"].items()}
    for x in changed.values():
        x[:, at] += 1.0
    weights = random_weights(network_of(case))
    first, second = (
        one_step(process, task | {"x": x}, weights)["before"]["test"] for x in (task["x"], changed)
    )
    moved = np.abs(first - second).reshape(-1, steps, 4).max((0, 2))
    assert moved[:at].max() <= EXACT
    assert moved[at:].min() > 1e-3


def test_two_directions_see_both_ends(stepwise: tuple[AdapterProcess, str]) -> None:
    """Catches: a second direction that also runs forward, or whose last state is taken at the wrong end."""
    process, execution = stepwise
    tree = [
        {"kind": "rnn", "units": 2, "bidirectional": True},
        {"kind": "reconstruction", "dense": False},
    ]
    case = {"in_shape": [5, 4], "layers": tree, "outputs": 20, "loss": "mse"}
    task = task_of(case, execution)
    changed = {split: x.copy() for split, x in task["x"].items()}
    for x in changed.values():
        x[:, 2] += 1.0
    weights = random_weights(network_of(case))
    first, second = (
        one_step(process, task | {"x": x}, weights)["before"]["test"] for x in (task["x"], changed)
    )
    moved = np.abs(first - second).reshape(-1, 5, 2, 2).max((0, 3)) > 1e-6
    assert moved[:, 0].tolist() == [False, False, True, True, True]
    assert moved[:, 1].tolist() == [True, True, True, False, False]


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize(
    ("framework", "execution"),
    matrix(PAIRS, lambda pair: pair != ("keras_jax", "compiled"), several=True),
    ids=map("-".join, PAIRS),
)
def test_every_execution_trains_alike(name: str, framework: str, execution: str, adapters: Adapters) -> None:
    """Catches: an execution that leaves running statistics, lengths or token ids behind, or computes less
    than float64; and frameworks that differ in a gradient."""
    steps, epochs = 3, 2
    task = task_of(ZOO[name], execution, steps)
    network = network_of(ZOO[name])
    orders = np.stack([np.random.default_rng(epoch).permutation(26) for epoch in range(epochs)])
    run = {
        "weights": random_weights(network),
        "orders": orders[:, : steps * BATCH].reshape(epochs, steps, BATCH).astype(np.int32),
        "rates": np.full((epochs, steps), 0.02),
    }
    result = _trained(adapters(framework, "float64"), task, run)
    expected_result = _trained(adapters("torch", "float64"), task | {"execution": "eager"}, run)
    _agree(task, result, expected_result)


@pytest.mark.parametrize("name", ZOO)
def test_half_frozen_networks_train_alike(
    name: str, stepwise: tuple[AdapterProcess, str], adapters: Adapters
) -> None:
    """Catches: a kind that trains although it is frozen, or loses its state's layout next to a frozen one."""
    framework, execution = stepwise
    case = ZOO[name]
    network = network_of(case)
    frozen = [node.path for node in network.layers() if node.params][::2]
    task = task_of(case | {"freeze": frozen}, execution, 3)
    orders = np.random.default_rng(1).permutation(26)[: 3 * BATCH].reshape(1, 3, BATCH)
    run = {
        "weights": random_weights(network),
        "orders": orders.astype(np.int32),
        "rates": np.full((1, 3), 0.02),
    }
    result = _trained(framework, task, run)
    _agree(task, result, _trained(adapters("torch", "float64"), task | {"execution": "idiomatic"}, run))
    for weight, value in result["weights"].items():
        still = weight.rpartition(".")[0] in frozen
        assert same(value, run["weights"][weight]) == still, weight


@pytest.mark.parametrize("model", MODELS)
def test_every_model_trains_alike(
    model: str, stepwise: tuple[AdapterProcess, str], adapters: Adapters
) -> None:
    """Catches: what only shows in a whole architecture at its own size: 20 steps of Adam on 8 x 8 images."""
    tree = OmegaConf.create({"model": OmegaConf.load(ROOT / f"conf/model/{model}.yaml")})
    plain: Any = OmegaConf.to_container(tree, resolve=True)
    last = plain["model"]["layers"][-1]["kind"]
    kind = {"outputs": 64, "loss": "mse"} if last == "reconstruction" else {"outputs": 10}
    case = {"in_shape": [8, 8], "layers": plain["model"]["layers"], **kind}
    framework, execution = stepwise
    task = task_of(case, execution, 5)
    network = network_of(case)
    orders = np.stack([np.random.default_rng(epoch).permutation(26)[:20] for epoch in range(4)])
    run = {
        "weights": initialisers.initialise(network.params(), 1, "float64"),
        "orders": orders.reshape(4, 5, BATCH).astype(np.int32),
        "rates": np.full((4, 5), 0.003),
    }
    result = _trained(framework, task, run)
    expected_result = _trained(adapters("torch", "float64"), task | {"execution": "idiomatic"}, run)
    _agree(task, result, expected_result)


def _trained(process: AdapterProcess, task: Task, run: dict[str, Any]) -> Any:
    (result,) = process.call("tests.support.adapter_cases:train", task=task, rule=shared("adam"), runs=[run])
    return result


def _agree(task: Task, result: dict[str, Any], expected_result: dict[str, Any]) -> None:
    """The same losses, weights and optimizer state, and outputs that are NumPy's with these weights."""
    assert losses_agree(result["losses"], expected_result["losses"])
    for a, b in (
        (result["weights"], expected_result["weights"]),
        (result["state"]["slots"], expected_result["state"]["slots"]),
    ):
        deviation = canonical.compare(a, b)
        assert deviation.largest <= BOUND, deviation
    outputs, _ = forward(
        adapter_cases.network(task), result["weights"], task["x"]["test"], lengths_of(task, "test")
    )
    assert np.abs(result["after"] - outputs).max() <= BOUND
