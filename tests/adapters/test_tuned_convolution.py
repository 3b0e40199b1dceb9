"""The tuned convolution's gradients on JAX: the same numbers, in an order of axes that is fast with XLA."""

from __future__ import annotations

import importlib
import re
from typing import Any

import numpy as np
import pytest

from tests.support.adapter_process import Adapters

SHAPES = {
    "image, same": ((2, 5, 6, 3), (3, 3), 1, "same", 4),
    "image, even kernel": ((2, 5, 6, 1), (4, 4), 1, "same", 2),
    "image, strides": ((2, 7, 8, 2), (3, 3), 2, "valid", 3),
    "image, strides wider than the kernel": ((2, 9, 8, 2), (2, 2), 3, "valid", 1),
    "image, a pixel": ((3, 4, 4, 2), (1, 1), 1, "same", 3),
    "steps, causal": ((2, 7, 3), (3,), 1, "causal", 2),
    "steps, strides": ((2, 8, 1), (3,), 2, "valid", 4),
}
TUNED = "adapters.keras.backends.jax.tuned_layers.convolution"
FAST = re.compile(r"b(01|0)f_(01|0)io->b(01|0)f")


@pytest.mark.parametrize("name", SHAPES)
def test_gradients_are_those_of_jax(name: str, adapters: Adapters) -> None:
    """Catches: zeros on the wrong side of a gradient, a kernel that is not flipped, channels and filters
    exchanged, rows that a stride never reaches."""
    case = "tests.adapters.test_tuned_convolution:gradients"
    results = adapters("keras_jax", "float64").call(case, shape=list(SHAPES[name]))
    assert results["outputs"] == 0.0
    assert results["x"] < 1e-12 and results["kernel"] < 1e-12


def test_axes_are_in_the_order_that_xla_is_fast_with(adapters: Adapters) -> None:
    """Catches: a convolution in the body of a loop with an order of axes that XLA has no fast kernel for:
    seven times the time of a step. JAX's own have such an order, so the tuned ones are still needed."""
    results = adapters("keras_jax", "float64").call("tests.adapters.test_tuned_convolution:orders")
    assert len(results["tuned"]) == 5 and all(FAST.fullmatch(order) for order in results["tuned"])
    assert not all(FAST.fullmatch(order) for order in results["jax"])


def gradients(adapter: Any, shape: list[Any]) -> dict[str, float]:
    """The case: the largest difference to what JAX derives by itself, of outputs and gradients."""
    jax, tuned = importlib.import_module("jax"), importlib.import_module(TUNED)
    x_shape, sizes, stride, padding, filters = shape
    random = np.random.default_rng(0)
    x = random.normal(size=x_shape)
    kernel = random.normal(size=(*sizes, x_shape[-1], filters))
    arguments = tuple(stride for _ in sizes), tuned.paddings(padding, sizes)

    def outcome(convolve: Any) -> Any:
        outputs, back = jax.vjp(lambda x, kernel: convolve(x, kernel, *arguments), x, kernel)
        return outputs, *back(np.random.default_rng(1).normal(size=outputs.shape))

    each = zip(outcome(tuned.convolve), outcome(tuned._convolve), strict=True)
    differences = [float(np.abs(a - b).max()) for a, b in each]
    return dict(zip(("outputs", "x", "kernel"), differences, strict=True))


def orders(adapter: Any) -> dict[str, list[str]]:
    """The case: the orders of axes of all convolutions in a compiled loop over steps of two layers."""
    jax, tuned = importlib.import_module("jax"), importlib.import_module(TUNED)
    x = np.ones((8, 6, 6, 2))
    kernels = np.ones((3, 3, 2, 4)), np.ones((3, 3, 4, 4))

    def of(convolve: Any) -> list[str]:
        def loss(kernels: Any) -> Any:
            outputs: Any = x
            for kernel in kernels:
                outputs = jax.numpy.tanh(convolve(outputs, kernel, (1, 1), tuned.paddings("same", (3, 3))))
            return (outputs**2).sum()

        def step(_: Any, kernels: Any) -> Any:
            return jax.tree.map(lambda kernel, slope: kernel - slope, kernels, jax.grad(loss)(kernels))

        loop = jax.jit(lambda kernels: jax.lax.fori_loop(0, 3, step, kernels))
        text = loop.lower(kernels).compile().as_text()
        return re.findall(r" convolution\(.*dim_labels=([^,\s]+)", text)

    return {"tuned": of(tuned.convolve), "jax": of(tuned._convolve)}
