"""What XLA is told when it compiles a training for a CPU, on JAX and on TensorFlow."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest

from adapters import keras as keras_adapter
from tests import cases
from tests.lab import Lab
from tests.tasks import RULES, Task, make_task

HERE = "tests.test_xla_options"
SGD = {"name": "sgd"} | RULES["sgd"]
OUTPUT = {"kind": "output"}
OWN_PRODUCTS = {"xla_cpu_experimental_ynn_fusion_type": "", "xla_cpu_multi_thread_eigen": False}


def test_xla_is_told_of_wide_vectors_where_there_are_any(lab: Callable[[str, str], Lab]) -> None:
    """Catches: an option for processors that don't have it; one that a JAX that has never heard of it ends
    with; programs compiled without it; settings that don't say what was compiled with."""
    found = lab("keras_jax", "float64").call(f"{HERE}:wide_vectors", task=make_task("epoch"), rule=SGD)
    wide, own = {"xla_cpu_prefer_vector_width": "512"}, OWN_PRODUCTS
    assert found == {"wide": [wide | own] * 2, "narrow": [own] * 2, "unknown": [own] * 2}


def wide_vectors(adapter: Any, task: Task, rule: dict[str, Any]) -> dict[str, list[Any]]:
    """The case: what settings say of a program's options and what `jax.jit` was given, by the processor."""
    import jax

    from adapters.keras import jax_loops, jax_options

    found = {}
    instructions = {"wide": {"avx2", "avx512f"}, "narrow": {"avx2"}, "unknown": {"avx2", "avx512f"}}
    for name, known in instructions.items():
        option = jax_options.WIDE if name != "unknown" else {"xla_cpu_no_such_option": "512"}
        with (
            mock.patch.object(jax_options.machine, "instructions", lambda known=known: frozenset(known)),
            mock.patch.object(jax_options, "WIDE", option),
            mock.patch.object(jax_loops.jax, "jit", wraps=jax.jit) as jit,
        ):
            jax_options._known.cache_clear()
            said = adapter.build(cases.plan(task, rule)).settings()["xla_options"]
            given = [
                call.kwargs["compiler_options"]
                for call in jit.call_args_list
                if "donate_argnums" in call.kwargs
            ]
        found[name] = [said, *given]
    jax_options._known.cache_clear()
    return found


@pytest.mark.parametrize(
    ("what", "own"),
    [
        ({}, True),
        ({"layers": [{"kind": "rnn", "units": 4, "returns": "last"}, OUTPUT], "in_shape": [5, 2]}, True),
        ({"layers": [{"kind": "lstm", "units": 4, "returns": "last"}, OUTPUT], "in_shape": [5, 2]}, False),
        ({"layers": [{"kind": "layer_norm"}, OUTPUT], "in_shape": [401]}, True),
        ({"layers": [{"kind": "dense", "units": 401}, OUTPUT]}, False),
        (
            {
                "layers": [
                    {
                        "kind": "residual",
                        "body": [{"kind": "dense", "units": 401}, {"kind": "dense", "units": 5}],
                    },
                    OUTPUT,
                ]
            },
            False,
        ),
        ({"batches": [1, 513]}, False),
        ({"threads": 2}, False),
    ],
    ids=["dense", "rnn", "lstm", "many inputs", "wide", "wide inside", "batch", "threads"],
)
def test_xla_makes_products_itself_where_that_is_faster(
    what: dict[str, Any], own: bool, lab: Callable[[str, str], Lab]
) -> None:
    """Catches: loops of XLA's own for products that a library is faster with, up to 1.5 times, or for which
    there are several threads; and none for those that a feed-forward network has."""
    asked = {key: value for key, value in what.items() if key != "threads"}
    task = make_task("epoch", **asked)
    told = lab("keras_jax", "float64").call(
        f"{HERE}:told", task=task, rule=SGD, threads=what.get("threads", 1)
    )
    assert (told.items() >= OWN_PRODUCTS.items()) == own


def told(adapter: Any, task: Task, rule: dict[str, Any], threads: int) -> dict[str, Any]:
    """The case: XLA's options for a program on so many threads."""
    from adapters.keras import jax_options

    return jax_options.cpu_options(cases.plan(task, rule), threads)


@pytest.mark.parametrize("framework", ["keras", "keras_jax"])
def test_flags_of_xla_are_there_when_it_is_imported_and_a_user_s_come_last(framework: str) -> None:
    """Catches: flags that come too late, or that replace a user's; and flags for one thread where there are
    several, or for a card."""
    backend = {"keras": "tensorflow", "keras_jax": "jax"}[framework]
    code = f"from tests.test_xla_options import flags; flags({backend!r})"
    environment = os.environ | {"XLA_FLAGS": "--xla_cpu_enable_fast_math=false"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    given = f"{keras_adapter.XLA_FLAGS[backend]} --xla_cpu_enable_fast_math=false"
    assert done.stdout.splitlines() == [given, *["--xla_cpu_enable_fast_math=false"] * 2], done.stderr


def flags(backend: str) -> None:
    """In a process of its own: print XLA's flags as an adapter on one thread sets them, on two, on a card."""
    from harness.adapter import AdapterOptions

    own = os.environ["XLA_FLAGS"]
    for threads, device in ((1, "cpu"), (2, "cpu"), (1, "cuda")):
        os.environ["XLA_FLAGS"] = own
        keras_adapter.before_import(AdapterOptions(backend, "float32", threads, device))
        print(os.environ["XLA_FLAGS"])
