"""What is specific to Keras: where its float64 leaks, and where its optimizers differ from the rules.

The contract suite checks every Keras backend against the reference to 1e-10 with shared rules. Here the leaks
are reopened to show that this bound catches them, and each native optimizer that differs from the paper's
rule must match the one that `harness.core.certificates.native_rules` has for the deviations that the adapter
names, to 1e-10, in every execution.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from harness.core.adapter import Adapter
from harness.core.certificates import native_rules
from harness.core.training import weights as canonical
from tests.support import adapter_cases, numpy_training
from tests.support.adapter_process import Adapters, frameworks
from tests.support.matrix import matrix
from tests.support.tasks import BOUND, RULES, Task, expected, make_run, make_task, shared

KERAS = [name for name, framework in frameworks().items() if framework.adapter == "adapters.keras"]
ALL = [(name, execution) for name in KERAS for execution in frameworks()[name].executions]


def trained(task: dict[str, Any], rule: Any, run: dict[str, Any]) -> dict[str, Any]:
    """The final weights by the reference."""
    x, y = task["x"]["train"], task["y"]["train"]
    arguments = (adapter_cases.network(task), task["loss"], rule, run["weights"], x, y)
    return numpy_training.train(*arguments, run["orders"], run["rates"])[1]


@pytest.mark.parametrize("name", [name for name, _ in native_rules.DEVIATING_RULES])
@pytest.mark.parametrize(("framework", "execution"), ALL)
def test_native_deviations_are_the_named_ones(
    framework: str, execution: str, name: str, adapters: Adapters
) -> None:
    """Catches: a number that reaches Keras' optimizer as float32 (2e-8 off), decoupled weight decay, the rate
    of another step, a deviation missing in `settings`, and a named one that another version of Keras
    lacks."""
    task, raw = make_task(execution), {"name": name} | RULES[name]
    run = make_run(task, raw["learning_rate"])
    process = adapters(framework, "float64")
    (result,) = process.call("tests.support.adapter_cases:train", task=task, rule=raw, runs=[run])
    settings = process.call("tests.support.adapter_cases:description", task=task, rule=raw)["settings"]
    named = native_rules.deviating_rule(adapter_cases.rule(raw), settings["deviations"])
    assert named is not None, settings
    as_keras_does = trained(task, named, run)
    as_the_paper_does = trained(task, adapter_cases.rule(raw), run)
    assert canonical.compare(result["weights"], as_keras_does).largest <= BOUND
    assert canonical.compare(result["weights"], as_the_paper_does).largest > 1e4 * BOUND


@contextmanager
def _demotion() -> Iterator[None]:
    from keras.src.backend.common import dtypes

    with mock.patch.dict(dtypes.BIT64_TO_BIT32_DTYPE, {"float64": "float32"}):
        yield


@contextmanager
def _keras_own_activations() -> Iterator[None]:
    from keras import ops

    from adapters.keras import activations

    own = {
        "_exact_gelu": activations._gelu,
        "_leaky_relu": lambda slope, precision: lambda x: ops.leaky_relu(x, negative_slope=slope),
    }
    with mock.patch.multiple(activations, **own):
        yield


@pytest.mark.parametrize("execution", frameworks()["keras_torch"].executions)
def test_keras_state_has_every_attribute_that_a_step_reads(execution: str, adapters: Adapters) -> None:
    """Catches: an attribute of the thread that Keras reads at each operation and that is missing, which costs
    an exception each time (256 in an FNN's step), including one that a newer Keras has added."""
    layers: list[dict[str, Any]] = [
        {"kind": "dense", "units": 6},
        {"kind": "dropout", "rate": 0.5},
        {"kind": "batch_norm"},
        {"kind": "output"},
    ]
    task, rule = make_task(execution, layers=layers), RULES["adam"] | {"name": "adam"}
    arguments = {"task": task, "rule": rule, "runs": [make_run(task, 0.01)]}
    read, missing = adapters("keras_torch", "float64").call(
        "tests.adapters.test_keras_adapter:state_reads", **arguments
    )
    assert missing == []
    assert {"stateless_scope", "torch_device"} <= set(read)


class _RecordingState:
    """In the child: wraps the attributes of Keras' thread, and records which are read."""

    def __init__(self, attributes: Any) -> None:
        vars(self).update(attributes=attributes, present=set(), missing=set())

    def __getattr__(self, name: str) -> Any:
        exists = name in vars(self.attributes)
        (self.present if exists else self.missing).add(name)
        return getattr(self.attributes, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.attributes, name, value)


def state_reads(adapter: Adapter, **arguments: Any) -> tuple[list[str], list[str]]:
    """In the child: the attributes that a training reads, and those of them that are missing."""
    from keras.src.backend.common import global_state

    adapter_cases.train(adapter, **arguments)  # building a program may read more
    state = _RecordingState(global_state.GLOBAL_STATE_TRACKER)
    with mock.patch.object(global_state, "GLOBAL_STATE_TRACKER", state):
        adapter_cases.train(adapter, **arguments)
    return sorted(state.present), sorted(state.missing)


LEAKS = {"demotion": _demotion, "activations": _keras_own_activations}


def train_with_leak(adapter: Adapter, leak: str, **arguments: Any) -> Any:
    """In the child: `adapter_cases.train` on new programs, with a leak of Keras reopened."""
    with mock.patch.object(adapter_cases, "_programs", {}), LEAKS[leak]():
        return adapter_cases.train(adapter, **arguments)


@pytest.mark.parametrize(
    ("framework", "execution", "leak", "least"),
    [
        ("keras_jax", "epoch", "demotion", 1e-8),
        ("keras_torch", "eager", "demotion", 1e-8),
        ("keras", "epoch", "activations", 1e-10),
    ],
)
def test_a_leak_of_float64_is_caught(
    framework: str, execution: str, leak: str, least: float, adapters: Adapters
) -> None:
    """Catches: a workaround that is no longer needed (and should be removed), and a bound too wide for the
    leak."""
    layers: list[dict[str, Any]] = [
        {"kind": "dense", "units": 6},
        {"kind": "activation", "function": "gelu"},
        {"kind": "dense", "units": 6},
        {"kind": "activation", "function": "leaky_relu", "slope": 0.1},
        {"kind": "output"},
    ]
    task, rule = make_task(execution, layers=layers), shared("sgd")
    run = make_run(task, 0.5)
    process = adapters(framework, "float64")
    losses, weights = expected(task, rule, run)

    def deviation(result: dict[str, Any]) -> float:
        of_losses = float(np.abs(np.stack(result["losses"]) - losses).max())
        return max(of_losses, canonical.compare(result["weights"], weights).largest)

    case = "tests.adapters.test_keras_adapter:train_with_leak"
    (leaking,) = process.call(case, leak=leak, task=task, rule=rule, runs=[run])
    assert deviation(leaking) > least
    (tight,) = process.call("tests.support.adapter_cases:train", task=task, rule=rule, runs=[run])
    assert deviation(tight) <= BOUND


XLA_ONCE = """
import numpy as np
from harness.core.adapter import AdapterOptions
from adapters.keras import adapter
from tests.support import adapter_cases
from tests.support.tasks import make_run, make_task
task = make_task({execution!r}, precision="float32", xla=True)
runs = [make_run(task, rate, seed=seed) for seed, rate in enumerate((0.02, 0.01))]
adapter_cases.train(adapter(AdapterOptions("tensorflow", "float32", 1, "cpu")), task, {rule!r}, runs)
"""


@pytest.mark.parametrize("execution", ["compiled", "epoch"])
@pytest.mark.parametrize("impl", matrix(["native", "shared"], ("native",).__contains__))
def test_xla_compiles_a_tensorflow_program_once(execution: str, impl: str, repository: Path) -> None:
    """Catches: a value that XLA needs at compile time and that changes, such as the step count as the start
    of a slice: one compilation per epoch, which TensorFlow's count of traces does not show."""
    if frameworks()["keras"].missing():
        pytest.skip("TensorFlow is not installed")
    rule = {"name": "adamw", "learning_rate": 0.02, "impl": impl}
    script = XLA_ONCE.format(execution=execution, rule=rule)
    log = {"TF_CPP_MIN_LOG_LEVEL": "0", "TF_CPP_VMODULE": "device_compiler=1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=repository,
        env=os.environ | log,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stderr.count("Compilation of XLA executable") == 1, done.stderr[-4000:]


def test_no_pipeline_is_autotuned(adapters: Adapters) -> None:
    """Catches: a pipeline of `fit` on TensorFlow with an autotuning thread, for which the end of a run waits
    up to a minute."""
    if frameworks()["keras"].missing():
        pytest.skip("TensorFlow is not installed")
    rule = {"name": "sgd"} | RULES["sgd"]
    arguments = {"task": make_task("idiomatic"), "rule": rule}
    assert adapters("keras", "float64").call("tests.adapters.test_keras_adapter:pipeline", **arguments) == [
        False
    ]


def pipeline(adapter: Any, task: Task, rule: dict[str, Any]) -> list[bool]:
    """The case: whether the pipelines of a run's `fit` are autotuned."""
    program = adapter.build(adapter_cases.plan(task, rule))
    program.trainer(adapter_cases.examples(task), adapter_cases.rule(rule), 0).load(
        make_run(task, 0.1)["weights"]
    )
    arguments = program._loop._source.arguments()
    return [dataset.options().autotune.enabled for dataset in arguments.values()]


@pytest.mark.parametrize(
    ("variable", "dispatches"), [("", True), ("true", True), ("false", False), ("0", False)]
)
def test_async_dispatch_of_jax_follows_the_environment(variable: str, dispatches: bool) -> None:
    """Catches: a variable that is ignored, or read too late, after JAX has created its device."""
    pytest.importorskip("jax")
    environment = os.environ | {"JAX_CPU_ENABLE_ASYNC_DISPATCH": variable, "NPROC": "1"}
    code = "from tests.adapters.test_keras_adapter import threads_of_a_call; threads_of_a_call()"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == [str(dispatches), str(dispatches)], done.stderr


def threads_of_a_call() -> None:
    """In a process of its own: print what the adapter reports, and whether a call returns before its
    result."""
    from harness.core.adapter import AdapterOptions
    from harness.worker.serve import import_adapter

    adapter = import_adapter("adapters.keras", AdapterOptions("jax", "float32", 1, "cpu"))
    import jax
    import jax.numpy as jnp

    def long(x: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, 400, lambda _, y: jnp.tanh(y @ y), x)

    call = jax.jit(long)
    x = jnp.ones((256, 256))
    call(x).block_until_ready()
    print(adapter.environment()["async_dispatch"], not call(x).is_ready())
