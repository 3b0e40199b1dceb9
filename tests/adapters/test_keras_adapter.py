"""What is special to Keras: where its float64 leaks, and where its optimizers differ from the rules.

The contract suite holds every Keras backend to the reference at 1e-10 under shared rules. Here the leaks are
planted again, to show that this bound sees them, and each native optimizer that is not the paper's rule must
be the one that `harness.core.certificates.native_rules` has for what the adapter names, to 1e-10, in every
execution.
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
from tests.support.tasks import BOUND, RULES, Task, expected, make_run, make_task, shared

KERAS = [name for name, found in frameworks().items() if found.adapter == "adapters.keras"]
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
    """Catches: a number that reaches Keras' optimizer as float32 (2e-8 off), decoupled weight decay, a rate
    of another step, and a deviation that `settings` doesn't name or that is gone in another Keras."""
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
def test_keras_finds_what_it_asks_its_thread_for(execution: str, adapters: Adapters) -> None:
    """Catches: a name that Keras asks for at each operation and does not find, which costs an exception each
    time (256 in an FNN's step), be it one that a newer Keras has added."""
    layers: list[dict[str, Any]] = [
        {"kind": "dense", "units": 6},
        {"kind": "dropout", "rate": 0.5},
        {"kind": "batch_norm"},
        {"kind": "output"},
    ]
    task, rule = make_task(execution, layers=layers), RULES["adam"] | {"name": "adam"}
    arguments = {"task": task, "rule": rule, "runs": [make_run(task, 0.01)]}
    asked, missed = adapters("keras_torch", "float64").call(
        "tests.adapters.test_keras_adapter:asked_for", **arguments
    )
    assert missed == []
    assert {"stateless_scope", "torch_device"} <= set(asked)


class _Noting:
    """In the child: stands for the attributes of Keras' thread, and notes which are read."""

    def __init__(self, attributes: Any) -> None:
        vars(self).update(attributes=attributes, found=set(), missed=set())

    def __getattr__(self, name: str) -> Any:
        there = name in vars(self.attributes)
        (self.found if there else self.missed).add(name)
        return getattr(self.attributes, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.attributes, name, value)


def asked_for(adapter: Adapter, **arguments: Any) -> tuple[list[str], list[str]]:
    """In the child: what a training asks for and finds, and what it does not find."""
    from keras.src.backend.common import global_state

    adapter_cases.train(adapter, **arguments)  # what is built anew may ask for more
    noting = _Noting(global_state.GLOBAL_STATE_TRACKER)
    with mock.patch.object(global_state, "GLOBAL_STATE_TRACKER", noting):
        adapter_cases.train(adapter, **arguments)
    return sorted(noting.found), sorted(noting.missed)


LEAKS = {"demotion": _demotion, "activations": _keras_own_activations}


def train_with_leak(adapter: Adapter, leak: str, **arguments: Any) -> Any:
    """In the child: `cases.train` on programs of its own, with a leak of Keras' left open."""
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
def test_a_leak_of_float64_is_seen(
    framework: str, execution: str, leak: str, least: float, adapters: Adapters
) -> None:
    """Catches: remedies that are no longer needed (then they should go), and a bound too wide to see why."""
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
@pytest.mark.parametrize("impl", ["native", "shared"])
def test_xla_compiles_a_tensorflow_program_once(execution: str, impl: str, repository: Path) -> None:
    """Catches: a value that XLA wants at compile time and that changes, such as the step count as the begin
    of a slice: a whole compilation each epoch, of which TensorFlow's count of tracings knows nothing."""
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


def test_no_pipeline_is_tuned(adapters: Adapters) -> None:
    """Catches: a pipeline of `fit` on TensorFlow with a thread that tunes it, for which the end of a run
    waits up to a minute."""
    if frameworks()["keras"].missing():
        pytest.skip("TensorFlow is not installed")
    rule = {"name": "sgd"} | RULES["sgd"]
    arguments = {"task": make_task("idiomatic"), "rule": rule}
    assert adapters("keras", "float64").call("tests.adapters.test_keras_adapter:pipeline", **arguments) == [
        False
    ]


def pipeline(adapter: Any, task: Task, rule: dict[str, Any]) -> list[bool]:
    """The case: whether the pipelines that a run's `fit` reads are tuned."""
    program = adapter.build(adapter_cases.plan(task, rule))
    program.trainer(adapter_cases.examples(task), adapter_cases.rule(rule), 0).load(
        make_run(task, 0.1)["weights"]
    )
    given = program._loop._source.arguments()
    return [dataset.options().autotune.enabled for dataset in given.values()]


@pytest.mark.parametrize(("asked", "found"), [("", True), ("true", True), ("false", False), ("0", False)])
def test_jax_computes_in_the_thread_that_calls_where_it_is_asked_to(asked: str, found: bool) -> None:
    """Catches: a variable that nobody reads, or that comes too late, when JAX has made its device."""
    pytest.importorskip("jax")
    environment = os.environ | {"JAX_CPU_ENABLE_ASYNC_DISPATCH": asked, "NPROC": "1"}
    code = "from tests.adapters.test_keras_adapter import threads_of_a_call; threads_of_a_call()"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == [str(found), str(found)], done.stderr


def threads_of_a_call() -> None:
    """In a process of its own: print what the adapter says, and whether a call is back before its result."""
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
