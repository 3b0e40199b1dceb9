"""The tuned layers compute the same outputs and gradients as Keras' layers."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.support.adapter_process import Adapters
from tests.support.matrix import matrix

LAYERS: dict[str, tuple[str, dict[str, Any], tuple[int, ...]]] = {
    "dense": ("Dense", {"units": 4, "activation": "tanh"}, (3, 5)),
    "dense, steps, no bias": ("Dense", {"units": 4, "use_bias": False}, (3, 6, 5)),
    "dense, large": ("Dense", {"units": 520}, (2, 520)),
    "dense, large, steps": ("Dense", {"units": 520}, (2, 3, 520)),
    "dense, many rows": ("Dense", {"units": 3}, (4, 64, 64)),
    "flatten": ("Flatten", {}, (2, 3, 4, 2)),
    "normalisation": ("LayerNormalization", {"epsilon": 0.1}, (3, 6, 5)),
    "normalisation, flat": ("LayerNormalization", {}, (4, 5)),
    "pool steps": ("MaxPooling1D", {"pool_size": 3}, (2, 8, 3)),
    "pool images": ("MaxPooling2D", {"pool_size": 2}, (2, 5, 6, 3)),
    "pool images, windows of two sizes": ("MaxPooling2D", {"pool_size": [3, 2]}, (2, 7, 8, 2)),
    "pool images, windows of many places": ("MaxPooling2D", {"pool_size": [17, 16]}, (2, 34, 16, 3)),
    "pool steps, windows of many places": ("MaxPooling1D", {"pool_size": 300}, (4, 600, 8)),
    "attention": ("MultiHeadAttention", {"num_heads": 2, "key_dim": 3}, (2, 5, 6)),
    "simple": ("SimpleRNN", {"units": 4}, (3, 5, 2)),
    "simple, unrolled": ("SimpleRNN", {"units": 4, "unroll": True, "return_sequences": True}, (3, 5, 2)),
    "lstm": ("LSTM", {"units": 4, "return_sequences": True}, (3, 5, 2)),
    "lstm, last step": ("LSTM", {"units": 4}, (3, 5, 2)),
    "lstm, one step": ("LSTM", {"units": 4}, (3, 1, 2)),
    "gru": ("GRU", {"units": 4, "return_sequences": True}, (3, 5, 2)),
    "gru, last step": ("GRU", {"units": 4}, (3, 5, 2)),
    "gru, backwards": ("GRU", {"units": 4, "go_backwards": True, "return_sequences": True}, (3, 5, 2)),
}
OF_TOKENS = ["Dense", "GRU", "LSTM", "LayerNormalization", "MultiHeadAttention", "SimpleRNN"]
OF_GELU = ["Dense", "gelu"]
CALLS: dict[str, dict[str, Any]] = {
    "attention": {},
    "attention, causal": {"use_causal_mask": True},
    "attention, padded": {"attention_mask": [[[True, True, True, False, False]], [[True] * 5]]},
}


CORE = set({kind: name for name, (kind, _, _) in reversed(LAYERS.items())}.values())
"""The first case of each kind."""


@pytest.mark.parametrize("name", matrix([*LAYERS, *CALLS], CORE.__contains__))
def test_outputs_and_gradients_are_those_of_keras(name: str, adapters: Adapters) -> None:
    """Catches: a missing gradient term or one with the wrong sign, gates in another order, the wrong initial
    state or direction, an inverted mask, a missing bias, an incomplete window, a window size along the wrong
    axis."""
    kind, options, shape = LAYERS[name.split(",")[0] if name in CALLS else name]
    results = adapters("keras_jax", "float64").call(
        "tests.adapters.test_tuned_layers:differences",
        kind=kind,
        options=options,
        shape=shape,
        call=CALLS.get(name, {}),
    )
    assert results["ours"] == [True, False]
    assert results["gradients"] and max(results["outputs"], *results["gradients"]) < 1e-13


def test_of_equal_maxima_the_first_gets_the_gradient(adapters: Adapters) -> None:
    """Catches: columns before rows, and the last or all of them instead of the first: after a relu half of
    all windows have several zeros, and every framework gives the gradient to the first."""
    results = adapters("keras_jax", "float64").call("tests.adapters.test_tuned_layers:ties")
    assert results["ours"] == results["keras"]


def test_settings_name_the_tuned_layers(adapters: Adapters) -> None:
    """Catches: a result that passes as Keras' own; tuned layers in `fit`, which has none."""
    results = adapters("keras_jax", "float64").call("tests.adapters.test_tuned_layers:recorded")
    assert results["tokens"] == {"idiomatic": None, "compiled": OF_TOKENS}
    assert results["gelu"] == {"idiomatic": None, "compiled": OF_GELU}


def test_gelu_and_its_slope_are_those_of_keras(adapters: Adapters) -> None:
    """Catches: the approximation by tanh (5e-4 off), a factor in the wrong place, a root that is rounded to
    float32 in float64; far from zero too, where one minus almost one is left."""
    results = adapters("keras_jax", "float64").call("tests.adapters.test_tuned_layers:gelus")
    assert max(results["value"], results["slope"]) < 1e-14


def test_flattened_values_are_computed_in_their_own_shape(adapters: Adapters) -> None:
    """Catches: a loop over the flat result, which divides for each value: 7 times the time of a pooling.
    Keras' own layer has such a loop, so the tuned one is still needed."""
    results = adapters("keras_jax", "float64").call("tests.adapters.test_tuned_layers:flat_loops")
    assert not results["ours"] and results["keras"]


def differences(
    adapter: Any, kind: str, options: dict[str, Any], shape: list[int], call: dict[str, Any]
) -> dict[str, Any]:
    """The case: the largest differences between the tuned layer and Keras', of outputs and of each
    gradient."""
    jax, keras = importlib.import_module("jax"), importlib.import_module("keras")
    own = importlib.import_module("adapters.keras.backends.jax.tuned_layers")
    random = np.random.default_rng(0)
    x = random.normal(size=shape)
    layers = [getattr(home, kind)(**_tuples(options), dtype="float64") for home in (own, keras.layers)]
    attends = kind == "MultiHeadAttention"
    arguments = {key: np.array(value) if isinstance(value, list) else value for key, value in call.items()}
    results = []
    for layer in layers:
        inputs = (x, x) if attends else (x,)
        layer(*inputs, **arguments)
        if not results:
            weights = [0.5 * random.normal(size=variable.shape) for variable in layer.trainable_variables]

        def apply(x: Any, weights: Any, layer: Any = layer) -> Any:
            inputs = (x, x) if attends else (x,)
            if attends:  # as Keras computes it in float64 throughout, see the adapter's `attention`
                arguments["return_attention_scores"] = type(layer).__module__.startswith("keras")
            others = [variable.value for variable in layer.non_trainable_variables]
            outputs, _ = layer.stateless_call(weights, others, *inputs, **arguments)
            return outputs[0] if isinstance(outputs, tuple) else outputs

        outputs, back = jax.vjp(apply, x, weights)
        dx, dweights = back(np.random.default_rng(1).normal(size=outputs.shape))
        results.append((outputs, [dx, *dweights]))
    (outputs, gradients), (keras_outputs, keras_gradients) = results
    return {
        "ours": [type(layer).__module__.startswith("adapters.") for layer in layers],
        "outputs": float(np.abs(outputs - keras_outputs).max()),
        "gradients": [float(np.abs(a - b).max()) for a, b in zip(gradients, keras_gradients, strict=True)],
    }


def ties(adapter: Any) -> dict[str, Any]:
    """The case: gradients of windows with several largest values."""
    jax, keras = importlib.import_module("jax"), importlib.import_module("keras")
    own = importlib.import_module("adapters.keras.backends.jax.tuned_layers")
    few = np.array([[0, 1, 0, 0], [1, 0, 0, 0], [2, 2, 3, 1], [2, 2, 1, 3]], float).reshape(1, 4, 4, 1)
    many = np.random.default_rng(0).integers(0, 3, (1, 34, 16, 1)).astype(float)

    def gradients(home: Any) -> Any:
        slopes = []
        for x, sizes in ((few, (2, 2)), (many, (17, 16))):
            layer = home.MaxPooling2D(sizes, dtype="float64")
            slopes.append(np.asarray(jax.grad(lambda x, layer=layer: layer(x).sum())(x)).ravel().tolist())
        return slopes

    return {"ours": gradients(own), "keras": gradients(keras.layers)}


def flat_loops(adapter: Any) -> dict[str, list[str]]:
    """The case: what XLA computes in a loop over flat rows, for pooled images that enter a product."""
    jax, keras = importlib.import_module("jax"), importlib.import_module("keras")
    own = importlib.import_module("adapters.keras.backends.jax.tuned_layers")
    x, kernel = np.ones((8, 6, 6, 4)), np.ones((36, 5))

    def of(home: Any) -> list[str]:
        pool, flatten = own.MaxPooling2D(2, dtype="float64"), home.Flatten(dtype="float64")
        program = jax.jit(lambda x, kernel: flatten(pool(jax.numpy.tanh(x))) @ kernel)
        return re.findall(
            r"= f64\[8,36\]\S* fusion\(.*kind=kLoop", program.lower(x, kernel).compile().as_text()
        )

    return {"ours": of(own), "keras": of(keras.layers)}


def recorded(adapter: Any) -> dict[str, Any]:
    """The case: the tuned layers in the settings of programs."""
    from tests.adapters.test_keras_layers import task_of
    from tests.support import adapter_cases
    from tests.support.tasks import make_task, shared

    def of(make: Callable[[str], Any]) -> dict[str, Any]:
        executions = ("idiomatic", "compiled")
        programs = {
            name: adapter.build(adapter_cases.plan(make(name), shared("adam"))) for name in executions
        }
        return {name: program.settings().get("own_layers") for name, program in programs.items()}

    gelu = [{"kind": "dense", "units": 3}, {"kind": "activation", "function": "gelu"}, {"kind": "output"}]
    return {
        "tokens": of(lambda name: task_of("tokens", name)),
        "gelu": of(lambda name: make_task(name, layers=gelu)),
    }


def gelus(adapter: Any) -> dict[str, float]:
    """The case: the largest differences between the tuned GELU and Keras', and between their slopes."""
    jax, keras = importlib.import_module("jax"), importlib.import_module("keras")
    own = importlib.import_module("adapters.keras.backends.jax.tuned_layers")
    x = np.linspace(-12.0, 12.0, 10001)

    def difference(of: Callable[[Any], Any]) -> float:
        return float(np.abs(of(own.gelu) - of(lambda x: keras.ops.gelu(x, approximate=False))).max())

    return {
        "value": difference(lambda gelu: gelu(x)),
        "slope": difference(lambda gelu: jax.vmap(jax.grad(gelu))(x)),
    }


def _tuples(options: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
