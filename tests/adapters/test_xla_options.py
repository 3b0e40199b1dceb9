"""XLA's flags and compiler options for a training on a CPU, on JAX and on TensorFlow."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any
from unittest import mock

import pytest

from adapters.keras import xla_flags
from tests.support import adapter_cases
from tests.support.adapter_process import Adapters
from tests.support.tasks import RULES, Task, make_task

HERE = "tests.adapters.test_xla_options"
SGD = {"name": "sgd"} | RULES["sgd"]
OUTPUT, FLATTEN = {"kind": "output"}, {"kind": "flatten"}
RNN = {"kind": "rnn", "units": 4, "returns": "last"}
LSTM = RNN | {"kind": "lstm"}
XLA_MATMUL = {"xla_cpu_experimental_ynn_fusion_type": "", "xla_cpu_multi_thread_eigen": False}


def dense(units: int) -> dict[str, Any]:
    """A dense layer."""
    return {"kind": "dense", "units": units}


def test_wide_vectors_are_used_if_the_processor_has_them(adapters: Adapters) -> None:
    """Catches: the option on a processor without wide vectors; a failure of a JAX that does not know the
    option; programs compiled without it; settings that differ from the options of the compilation."""
    options = adapters("keras_jax", "float64").call(f"{HERE}:wide_vectors", task=make_task("epoch"), rule=SGD)
    wide, own = {"xla_cpu_prefer_vector_width": "512"}, XLA_MATMUL
    assert options == {"wide": [wide | own] * 2, "narrow": [own] * 2, "unknown": [own] * 2}


def wide_vectors(adapter: Any, task: Task, rule: dict[str, Any]) -> dict[str, list[Any]]:
    """The case: the options in a program's settings and those passed to `jax.jit`, by the processor."""
    import jax

    from adapters.keras.backends.jax import loops, xla_options

    options = {}
    instructions = {"wide": {"avx2", "avx512f"}, "narrow": {"avx2"}, "unknown": {"avx2", "avx512f"}}
    for name, processor in instructions.items():
        option = xla_options.WIDE_VECTORS if name != "unknown" else {"xla_cpu_no_such_option": "512"}
        with (
            mock.patch.object(
                xla_options.host, "instructions", lambda processor=processor: frozenset(processor)
            ),
            mock.patch.object(xla_options, "WIDE_VECTORS", option),
            mock.patch.object(loops.jax, "jit", wraps=jax.jit) as jit,
        ):
            xla_options._compiles.cache_clear()
            recorded = adapter.build(adapter_cases.plan(task, rule)).settings()["xla_options"]
            passed = [
                call.kwargs["compiler_options"]
                for call in jit.call_args_list
                if "donate_argnums" in call.kwargs
            ]
        options[name] = [recorded, *passed]
    xla_options._compiles.cache_clear()
    return options


@pytest.mark.parametrize(
    ("what", "own"),
    [
        ({}, True),
        ({"layers": [RNN, OUTPUT], "in_shape": [5, 2]}, True),
        ({"layers": [LSTM, OUTPUT], "in_shape": [5, 2]}, False),
        ({"layers": [{"kind": "layer_norm"}, OUTPUT], "in_shape": [401]}, True),
        ({"layers": [dense(401), OUTPUT]}, False),
        ({"layers": [{"kind": "residual", "body": [dense(401), dense(5)]}, OUTPUT]}, False),
        ({"layers": [RNN | {"returns": "sequence"}, FLATTEN, OUTPUT], "in_shape": [101, 2]}, False),
        ({"batches": [1, 513]}, False),
        ({"flags": ""}, False),
    ],
    ids=["dense", "rnn", "lstm", "many inputs", "wide", "wide inside", "many columns", "batch", "flags"],
)
def test_xla_computes_products_itself_if_that_is_faster(
    what: dict[str, Any], own: bool, adapters: Adapters
) -> None:
    """Catches: XLA's own loops for products that a library computes faster, up to 1.5 times, or without the
    flag that they need; and no such loops for the products of a feed-forward network."""
    flags = what.get("flags", xla_flags.XLA_FLAGS["jax"])
    task = make_task("epoch", **{key: value for key, value in what.items() if key != "flags"})
    options = adapters("keras_jax", "float64").call(f"{HERE}:cpu_options", task=task, rule=SGD, flags=flags)
    assert (options.items() >= XLA_MATMUL.items()) == own


def cpu_options(adapter: Any, task: Task, rule: dict[str, Any], flags: str) -> dict[str, Any]:
    """The case: XLA's options for a program in a process with these flags."""
    from adapters.keras.backends.jax import xla_options

    with mock.patch.dict(os.environ, {"XLA_FLAGS": flags}):
        return xla_options.cpu_options(adapter_cases.plan(task, rule))


@pytest.mark.parametrize("framework", ["keras", "keras_jax"])
def test_flags_of_xla_are_set_before_its_import(framework: str) -> None:
    """Catches: no flags for one thread; and flags for one thread with several threads or on a GPU."""
    backend = {"keras": "tensorflow", "keras_jax": "jax"}[framework]
    code = f"from tests.adapters.test_xla_options import flags; flags({backend!r})"
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines() == [xla_flags.XLA_FLAGS[backend], "", ""], done.stderr


def flags(backend: str) -> None:
    """In a process of its own: print XLA's flags as an adapter sets them on one thread, on two, on a GPU."""
    from harness.core.adapter import AdapterOptions

    for threads, device in ((1, "cpu"), (2, "cpu"), (1, "cuda")):
        os.environ.pop("XLA_FLAGS", None)
        xla_flags.before_import(AdapterOptions(backend, "float32", threads, device))
        print(os.environ.get("XLA_FLAGS", ""))


@pytest.mark.parametrize(
    ("user_flags", "unchanged"),
    [
        ("--xla_dump_to=here", False),
        ("--xla_cpu_multi_thread_eigen=true --xla_dump_to=here", True),
        ("--xla_cpu_experimental_ynn_fusion_type=", True),
        ("--xla_backend_extra_options=xla_llvm_ir_gemm_tile_size=8:8:1*vectwidth", True),
        ("flags.txt", True),
    ],
)
def test_the_user_s_flags_of_xla_are_unchanged(user_flags: str, unchanged: bool) -> None:
    """Catches: a user's choice that is overruled, or a user's file of flags that XLA no longer reads."""
    adapter_flags = xla_flags.XLA_FLAGS["jax"]
    assert xla_flags.xla_flags("jax", user_flags) == (
        user_flags if unchanged else f"{adapter_flags} {user_flags}"
    )


def test_the_user_s_width_of_vectors_is_unchanged(adapters: Adapters) -> None:
    """Catches: an option of a program, which would overrule the user's flag."""
    flags = "--xla_cpu_prefer_vector_width=256"
    assert (
        adapters("keras_jax", "float64").call(
            f"{HERE}:cpu_options", task=make_task("epoch"), rule=SGD, flags=flags
        )
        == {}
    )
