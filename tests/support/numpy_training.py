"""Reference training of a network in NumPy, float64: what every adapter has to compute.

Written for readability, not speed, and independent of the frameworks. Each layer kind of feed-forward
networks has its forward pass next to its gradient; all other kinds are in tests/support/numpy_forward.py.
Gradients of losses are with respect to the logits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, assert_never

import numpy as np
from numpy.typing import NDArray

from harness.core.network import Activation, Dense, Dropout, Flatten, Network, Node
from harness.core.training import losses, optimizers
from harness.core.training.training_state import State, last_rate, velocities

Array = NDArray[Any]
Weights = dict[str, Array]
Backward = Callable[[Array], tuple[Array, Weights]]
"""Maps the gradient of a layer's output to the gradients of its input and of its weights."""

erf = np.vectorize(math.erf, otypes=[np.float64])


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def activate(layer: Activation, x: Array) -> tuple[Array, Callable[[Array], Array]]:
    """The function's value, and the function that propagates a gradient back."""
    match layer.function:
        case "linear":
            y, slope = x, np.ones_like(x)
        case "relu":
            y, slope = np.maximum(x, 0), (x > 0) * 1.0
        case "leaky_relu":
            slope = np.where(x > 0, 1.0, layer.slope)
            y = x * slope
        case "sigmoid":
            y = sigmoid(x)
            slope = y * (1 - y)
        case "tanh":
            y = np.tanh(x)
            slope = 1 - y * y
        case "gelu":  # x Phi(x), Hendrycks & Gimpel 2016
            below = (1 + erf(x / math.sqrt(2))) / 2
            y, slope = x * below, below + x * np.exp(-x * x / 2) / math.sqrt(2 * math.pi)
        case "silu":
            s = sigmoid(x)
            y, slope = x * s, s + x * s * (1 - s)
        case "softmax":
            e = np.exp(x - x.max(axis=-1, keepdims=True))
            y = e / e.sum(axis=-1, keepdims=True)
            return y, lambda g: y * (g - (g * y).sum(axis=-1, keepdims=True))
        case _:
            assert_never(layer.function)
    return y, lambda g: g * slope


def layer(node: Node, weights: Weights, x: Array) -> tuple[Array, Backward]:
    """A layer in evaluation mode, and its gradient."""
    names = node.weight_names()
    match node.layer:
        case Dense(use_bias=use_bias):
            kernel = weights[names["kernel"]]

            def backward(g: Array) -> tuple[Array, Weights]:
                rows, gradient = x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1])
                gradients = {names["kernel"]: rows.T @ gradient}
                return g @ kernel.T, gradients | ({names["bias"]: gradient.sum(0)} if use_bias else {})

            return x @ kernel + (weights[names["bias"]] if use_bias else 0.0), backward
        case Activation():
            y, carry = activate(node.layer, x)
            return y, lambda g: (carry(g), {})
        case Dropout():
            return x, lambda g: (g, {})
        case Flatten():
            return x.reshape(len(x), -1), lambda g: (g.reshape(x.shape), {})
        case _:
            raise NotImplementedError(
                f"{node.layer.kind}: only its forward pass, in tests/support/numpy_forward.py"
            )


def forward(network: Network, weights: Weights, x: Array) -> tuple[Array, list[Backward]]:
    """The network's outputs `[rows, outputs]`, and each layer's gradient."""
    gradients = []
    for node in network.nodes:
        x, backward = layer(node, weights, x)
        gradients.append(backward)
    return x, gradients


def loss_gradient(loss: str, outputs: Array, y: Array) -> Array:
    """The gradient of the mean loss with respect to the outputs."""
    match loss:
        case "mse":
            return 2 * (outputs - y) / outputs.size
        case "binary_cross_entropy":
            return (sigmoid(outputs) - y[:, None]) / len(outputs)
        case _:
            e = np.exp(outputs - outputs.max(axis=1, keepdims=True))
            return (e / e.sum(axis=1, keepdims=True) - np.eye(outputs.shape[1])[y]) / len(outputs)


def train(
    network: Network,
    loss: str,
    rule: optimizers.Rule,
    weights: Weights,
    x: Array,
    y: Array,
    orders: Array,
    rates: Array,
    state: State | None = None,
) -> tuple[Array, Weights, State]:
    """Train over `orders` `[epochs, steps, batch]` at `rates` `[epochs, steps]`, from a state or from
    scratch.

    Returns the loss of each batch before its step, `[epochs, steps]`, and weights and state at the end.
    """
    weights = {name: w.astype(np.float64) for name, w in weights.items()}
    trained = network.trained_weights()
    slots = {name: {slot: np.zeros_like(weights[name]) for slot in rule.slots} for name in trained}
    if state is not None:
        stored = velocities(state)
        slots = {name: {slot: stored[f"{name}/{slot}"] for slot in rule.slots} for name in trained}
    before = state.steps if state else 0
    batch_losses = np.zeros(rates.shape)
    for t, index in enumerate(np.ndindex(rates.shape), start=1 + before):
        rows = orders[index]
        outputs, backwards = forward(network, weights, x[rows])
        batch_losses[index] = losses.value(loss, outputs, y[rows])
        gradient, gradients = loss_gradient(loss, outputs, y[rows]), {}
        for backward in reversed(backwards):
            gradient, of_layer = backward(gradient)
            gradients |= of_layer
        for name in trained:
            old, g = weights[name], gradients[name]
            new = rule.update(old, g, slots[name], optimizers.numbers(rule), rates[index], float(t))
            weights[name], slots[name] = new
    final = {f"{name}/{slot}": a for name, of_weight in slots.items() for slot, a in of_weight.items()}
    return batch_losses, weights, State(before + batch_losses.size, last_rate(rates.ravel(), 0.0), final, {})
