"""Keras' layers with gradients of the adapter's own: what they compute is what Keras' layers do."""

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
    """Catches: a term of a gradient left out or with the wrong sign, gates in another order, the first step's
    state or a layer's direction mixed up, a mask the wrong way round, a bias that is not added, a rounded-off
    window, a size of a window along the wrong axis."""
    kind, options, shape = LAYERS[name.split(",")[0] if name in CALLS else name]
    found = adapters("keras_jax", "float64").call(
        "tests.adapters.test_tuned_layers:differences",
        kind=kind,
        options=options,
        shape=shape,
        call=CALLS.get(name, {}),
    )
    assert found["ours"] == [True, False]
    assert found["gradients"] and max(found["outputs"], *found["gradients"]) < 1e-13


def test_of_equal_values_the_first_has_the_gradient(adapters: Adapters) -> None:
    """Catches: columns before rows, the last one or all of them instead of the first: behind a relu half of
    all windows have several zeros, and every framework has its gradient for the first."""
    found = adapters("keras_jax", "float64").call("tests.adapters.test_tuned_layers:ties")
    assert found["ours"] == found["keras"]


def test_a_program_says_which_gradients_are_not_of_keras(adapters: Adapters) -> None:
    """Catches: a result that passes as Keras' own; layers of ours where a user's `fit` has none."""
    found = adapters("keras_jax", "float64").call("tests.adapters.test_tuned_layers:recorded")
    assert found["tokens"] == {"idiomatic": None, "compiled": OF_TOKENS}
    assert found["gelu"] == {"idiomatic": None, "compiled": OF_GELU}


def test_gelu_and_its_slope_are_those_of_keras(adapters: Adapters) -> None:
    """Catches: the approximation by tanh (5e-4 off), a factor in the wrong place, a root that is rounded to
    float32 in float64; far from zero too, where one minus almost one is left."""
    found = adapters("keras_jax", "float64").call("tests.adapters.test_tuned_layers:gelus")
    assert max(found["value"], found["slope"]) < 1e-14


def test_what_is_flattened_is_computed_in_its_own_shape(adapters: Adapters) -> None:
    """Catches: a loop over the flat result, which divides for each number: 7 times the time of a pooling.
    That it is so with Keras' own layer shows that ours is still worth its lines."""
    found = adapters("keras_jax", "float64").call("tests.adapters.test_tuned_layers:flat_loops")
    assert not found["ours"] and found["keras"]


def differences(
    adapter: Any, kind: str, options: dict[str, Any], shape: list[int], call: dict[str, Any]
) -> dict[str, Any]:
    """The case: the largest differences between ours and Keras', of outputs and of each gradient."""
    jax, keras = importlib.import_module("jax"), importlib.import_module("keras")
    own = importlib.import_module("adapters.keras.backends.jax.tuned_layers")
    random = np.random.default_rng(0)
    x = random.normal(size=shape)
    layers = [getattr(home, kind)(**_tuples(options), dtype="float64") for home in (own, keras.layers)]
    attends = kind == "MultiHeadAttention"
    given = {key: np.array(value) if isinstance(value, list) else value for key, value in call.items()}
    results = []
    for layer in layers:
        inputs = (x, x) if attends else (x,)
        layer(*inputs, **given)
        if not results:
            weights = [0.5 * random.normal(size=variable.shape) for variable in layer.trainable_variables]

        def apply(x: Any, weights: Any, layer: Any = layer) -> Any:
            inputs = (x, x) if attends else (x,)
            if attends:  # as Keras computes it in float64 throughout, see the adapter's `attention`
                given["return_attention_scores"] = type(layer).__module__.startswith("keras")
            others = [variable.value for variable in layer.non_trainable_variables]
            outputs, _ = layer.stateless_call(weights, others, *inputs, **given)
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
        found = []
        for x, sizes in ((few, (2, 2)), (many, (17, 16))):
            layer = home.MaxPooling2D(sizes, dtype="float64")
            found.append(np.asarray(jax.grad(lambda x, layer=layer: layer(x).sum())(x)).ravel().tolist())
        return found

    return {"ours": gradients(own), "keras": gradients(keras.layers)}


def flat_loops(adapter: Any) -> dict[str, list[str]]:
    """The case: what XLA computes in a loop over flat rows, of pooled images that go into a product."""
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
    """The case: what programs of a network say of themselves."""
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
    """The case: the largest differences between our GELU and Keras', and between their slopes."""
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
