"""Keras beyond the contract: float64 stays float64 in every layer, only the trainable weights of the spec are
trained, XLA compiles a program once, and the recorded settings are what runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.core.training import weights as canonical
from tests.support import adapter_cases
from tests.support.adapter_process import AdapterProcess, Adapters, frameworks
from tests.support.matrix import matrix
from tests.support.tasks import EPOCHS, STEPS, Run, Task, make_run, make_task, shared

KERAS = [name for name, framework in frameworks().items() if framework.adapter == "adapters.keras"]
PAIRS = [(name, execution) for name in KERAS for execution in frameworks()[name].executions]

# Heads of 3 numbers: one over the root of 3 has no exact float32.
ATTENTION: list[dict[str, Any]] = [
    {"kind": "to_sequence", "units": 6},
    {"kind": "positions", "encoding": "sinusoidal"},
    {
        "kind": "residual",
        "body": [{"kind": "layer_norm"}, {"kind": "attention", "heads": 2}, {"kind": "dropout", "rate": 0.1}],
    },
]
TOKENS = {
    "layers": [
        *ATTENTION,
        {"kind": "lstm", "units": 3, "bidirectional": True},
        {"kind": "gru", "units": 3},
        {"kind": "rnn", "units": 3},
        {"kind": "global_pool", "mode": "max"},
        {"kind": "output"},
    ],
    "in_shape": [5],
    "vocabulary": 9,
    "padded": True,
}
IMAGES = {
    "layers": [
        {"kind": "conv2d", "filters": 3, "use_bias": False},
        {"kind": "batch_norm"},
        {"kind": "activation", "function": "relu"},
        {"kind": "pool"},
        {"kind": "upsample"},
        {"kind": "dropout", "rate": 0.2},
        {"kind": "conv2d", "filters": 1},
        {"kind": "flatten"},
        {"kind": "output"},
    ],
    "in_shape": [4, 4, 2],
}
NETWORKS = {"tokens": TOKENS, "images": IMAGES}


def task_of(name: str, execution: str, dropout: bool = True, **other: Any) -> Task:
    """A task on one of the networks, with or without its dropout."""
    network = NETWORKS[name]
    layers = network["layers"] if dropout else _without_dropout(network["layers"])
    return make_task(execution, **network | {"layers": layers} | other)


def _without_dropout(layers: Any) -> Any:
    rest = [layer for layer in layers if layer["kind"] != "dropout"]
    return [layer | {"body": _without_dropout(layer["body"])} if "body" in layer else layer for layer in rest]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("framework", KERAS)
def test_float64_does_not_leak(framework: str, name: str, adapters: Adapters) -> None:
    """Catches: a softmax, a scale of attention, a scan or a promotion in float32, each of which is 1e-8 off
    or more and none of which Keras reports; a running statistic that differs; a gradient that torch lacks for
    a convolution with one filter. Compared with PyTorch, which has none of these."""
    rule = shared("adam")
    task = task_of(name, frameworks()[framework].executions[-1], dropout=False)
    run = make_run(task, 0.02)
    (result,) = adapters(framework, "float64").call(
        "tests.support.adapter_cases:train", task=task, rule=rule, runs=[run]
    )
    task["execution"] = "eager"
    (reference,) = adapters("torch", "float64").call(
        "tests.support.adapter_cases:train", task=task, rule=rule, runs=[run]
    )
    for split, outputs in reference["before"].items():
        assert np.abs(outputs - result["before"][split]).max() < 1e-13
    assert canonical.compare(result["weights"], reference["weights"]).largest < 1e-11
    assert np.abs(result["after"] - reference["after"]).max() < 1e-11


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("framework", KERAS)
def test_optimizers_see_what_the_spec_trains(framework: str, name: str, adapters: Adapters) -> None:
    """Catches: the attention's key bias or a sinusoidal table among the trained weights, which no output
    would show; running statistics that an optimizer decays."""
    task = task_of(name, frameworks()[framework].executions[-1])
    sizes = adapters(framework, "float64").call("tests.adapters.test_keras_layers:trained", task=task)
    params = adapter_cases.network(task).params().values()
    assert sorted(sizes) == sorted(p.size for p in params if p.trainable)


def trained(adapter: Any, task: Task) -> list[int]:
    """The case: the size of each variable for which the optimizer of a program has state."""
    program = adapter.build(adapter_cases.plan(task, shared("momentum")))
    return [int(np.prod(slot.shape)) for slot in program._parts.optimizer.keras.slots["velocity"]]


@pytest.mark.parametrize(
    ("name", "execution"),
    matrix([("tokens", "epoch"), ("images", "compiled")], lambda case: case[0] == "tokens", several=True),
)
def test_xla_compiles_a_program_once(
    name: str, execution: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: a value that XLA needs at compile time, such as the start of a slice by the step count.
    TensorFlow then compiles again for every new value, which its count of traces does not show; XLA's dump of
    each compilation does."""
    if missing := frameworks()["keras"].missing():
        pytest.skip(f"keras needs {missing}, which is not installed")
    dump = tmp_path / "xla"
    monkeypatch.setenv("XLA_FLAGS", f"--xla_dump_to={dump}")
    task = task_of(name, execution, xla=True, precision="float32")
    rule = shared("adamw") | {"impl": "native"}
    first = make_run(task, 0.02)
    other = make_run(task, 0.05, seed=9, numbers={"learning_rate": 0.05, "weight_decay": 0.5})
    child = AdapterProcess(frameworks()["keras"], "float32", tmp_path)
    try:
        counts = child.call(
            "tests.adapters.test_keras_layers:compiled",
            task=task,
            rule=rule,
            runs=[first, other],
            dump=str(dump),
        )
    finally:
        child.close()
    assert counts == [1] * (2 * EPOCHS)


def compiled(adapter: Any, task: Task, rule: dict[str, Any], runs: list[Run], dump: str) -> list[int]:
    """The case: train runs of one program, and count the modules that XLA has compiled after each epoch."""
    program = adapter.build(adapter_cases.plan(task, rule))
    counts = []
    for run in runs:
        trainer = program.trainer(
            adapter_cases.examples(task), adapter_cases.rule(rule | run.get("numbers", {})), run["seed"]
        )
        trainer.load(run["weights"])

        modules = adapter_cases.train_epochs(
            trainer, run, lambda trainer: sorted(Path(dump).glob("module_*"))
        )
        counts += [len({path.name.split(".")[0] for path in paths}) for paths in modules]
    return counts


@pytest.mark.parametrize(("framework", "execution"), PAIRS)
def test_settings_say_how_a_recurrent_layer_runs(framework: str, execution: str, adapters: Adapters) -> None:
    """Catches: a recorded loop where unrolled steps ran, or the other way round."""
    layers = [{"kind": "lstm", "units": 3, "returns": "last"}, {"kind": "output"}]
    for xla in (False, True) if framework == "keras" and execution != "idiomatic" else (False,):
        task = make_task(execution, layers=layers, in_shape=[5, 2], xla=xla)
        steps = adapters(framework, "float64").call("tests.adapters.test_keras_layers:steps_of", task=task)
        kernel = "unrolled" if framework == "keras" and execution != "idiomatic" and not xla else "loop"
        assert steps == {"recorded": kernel, "unroll": kernel == "unrolled"}


@pytest.mark.parametrize(
    ("steps", "units", "unrolled"), [(5, 31, False), (5, 32, True), (64, 32, True), (65, 32, False)]
)
def test_a_simple_network_is_unrolled_on_jax_where_that_pays(
    steps: int, units: int, unrolled: bool, adapters: Adapters
) -> None:
    """Catches: narrow or long layers that are unrolled, which XLA compiles for many seconds; wide ones that
    are not."""
    layers = [{"kind": "rnn", "units": units, "returns": "last"}, {"kind": "output"}]
    task = make_task("epoch", layers=layers, in_shape=[steps, 2])
    kernel = adapters("keras_jax", "float64").call("tests.adapters.test_keras_layers:steps_of", task=task)
    assert kernel == {"recorded": "unrolled" if unrolled else "loop", "unroll": unrolled}


def steps_of(adapter: Any, task: Task) -> dict[str, Any]:
    """The case: how the recurrent layer runs according to the program's settings, and to Keras."""
    program = adapter.build(adapter_cases.plan(task, shared("sgd")))
    (layer,) = [each for each in program._parts.model.keras.layers if hasattr(each, "unroll")]
    return {"recorded": program.settings()["recurrent"], "unroll": layer.unroll}


@pytest.mark.parametrize("execution", frameworks()["keras"].executions)
@pytest.mark.parametrize("name", ["adam", "adamw", "rmsprop", "momentum"])
def test_a_token_that_repeats_is_one_gradient(name: str, execution: str, adapters: Adapters) -> None:
    """Catches: gradients of an embedding that reach an optimizer as one row per token, so that it squares the
    rows instead of their sum, and a deviation of Keras' own loop in this that the settings do not name.
    (Epsilon is small, because Keras' rules add it in another place.)"""
    layers = [{"kind": "embedding", "units": 2}, {"kind": "global_pool"}, {"kind": "output"}]
    task = make_task(execution, layers=layers, in_shape=[6], vocabulary=5)
    rule = {"name": name, "learning_rate": 0.02} | ({} if name == "momentum" else {"epsilon": 1e-12})
    # one rate for all steps: the velocity of Keras' momentum carries it, so another one would show
    run = make_run(task, 0.02, rates=np.full((EPOCHS, STEPS), 0.02))
    child = adapters("keras", "float64")
    (result,) = child.call("tests.support.adapter_cases:train", task=task, rule=rule, runs=[run])
    (reference,) = child.call(
        "tests.support.adapter_cases:train",
        task=task | {"execution": "epoch"},
        rule=rule | {"impl": "shared"},
        runs=[run],
    )
    settings = child.call("tests.support.adapter_cases:description", task=task, rule=rule)["settings"]
    differs = canonical.compare(result["weights"], reference["weights"]).largest > 1e-6
    assert differs == ("squares_each_occurrence_of_a_token" in settings["deviations"])
    assert not differs or execution == "idiomatic"
