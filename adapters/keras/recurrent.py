"""Recurrent layers: Keras' own, run over all steps including padding.

A Keras mask would disable the fused kernels, so none is used: for padded sequences the state at the last
valid step is selected afterwards, and the backward direction gets rows that are reversed within their
lengths.

Whether steps are unrolled follows these measurements (one core, 64 units, batch 32; time unrolled / time of
the loop):

| steps | compiled by | simple | LSTM | GRU |
|-|-|-|-|-|
| 8 | XLA (JAX) | 0.85 | 1.0 | 0.9 |
| 28 | XLA (JAX; TensorFlow) | 0.85; 0.8 | 1.6; 2.4 | 1.15; 1.3 |
| 50 | XLA (JAX) | 0.85 | - | - |
| 28 | TensorFlow, no XLA | 0.6 | 0.7 | 1.0 |
| 28 | nothing (torch) | 1.0 | 1.0 | 1.0 |

On JAX, XLA needs 9 s to compile 28 unrolled steps of an LSTM and 2 s for the loop, and 2 s against 1 s for 50
steps of a simple layer. It inlines matrix products of fewer than 32 units, which gains less and compiles more
slowly: 28 steps of 16 units take 6 s against 1.5 s to compile for 0.95 of the step time, 50 steps take 14 s
for 0.99 (`evenbench leaderboard --phases`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, assert_never

import keras
from keras import ops

from adapters.keras.layer_parts import BuildOptions, BuiltLayer, Padding, require_padding
from harness.core.network import GRU, LSTM, Node, SimpleRNN

Recurrent = SimpleRNN | LSTM | GRU

MAX_UNROLLED_BY_XLA, MAX_UNROLLED = 32, 64
"""The maximum number of steps to unroll: by XLA on TensorFlow, and elsewhere."""
MIN_UNROLLED_UNITS = 32
"""The number of units from which on XLA on JAX compiles unrolled steps about as fast as the loop."""


def recurrent(node: Node, layer: Recurrent, options: BuildOptions) -> BuiltLayer:
    """Build a recurrent layer with one or two directions, which returns all states or the last."""
    if layer.bidirectional:
        return _padded_pair(node, layer, options) if node.masked else _pair(node, layer, options)
    sequence = layer.returns == "sequence"
    keras_layer = keras_recurrent(node, layer, sequence or node.masked, options)
    last = None if sequence or not node.masked else LastValid()

    def apply(x: Any, padding: Padding | None) -> Any:
        states = keras_layer(x)
        return states if last is None else last(states, require_padding(padding).lengths)

    return BuiltLayer(apply, lambda: cell_weights(keras_layer, ""), kernel=_kernel(node, layer, options))


def _pair(node: Node, layer: Recurrent, options: BuildOptions) -> BuiltLayer:
    """Keras' own bidirectional layer, which restores the order of the second direction's outputs."""
    both = keras.layers.Bidirectional(keras_recurrent(node, layer, layer.returns == "sequence", options))

    def weights() -> Mapping[str, Any]:
        return cell_weights(both.forward_layer, "") | cell_weights(both.backward_layer, "backward_")

    return BuiltLayer(lambda x, _: both(x), weights, kernel=_kernel(node, layer, options))


def _padded_pair(node: Node, layer: Recurrent, options: BuildOptions) -> BuiltLayer:
    """Two directions, of which the second runs each row from its last valid step to its first."""
    forward, backward = (keras_recurrent(node, layer, True, options) for _ in range(2))
    reverse, last, join = Reversed(), LastValid(), keras.layers.Concatenate()

    def apply(x: Any, padding: Padding | None) -> Any:
        lengths = require_padding(padding).lengths
        states, reversed_states = forward(x), backward(reverse(x, lengths))
        if layer.returns == "sequence":
            return join([states, reverse(reversed_states, lengths)])
        return join([last(states, lengths), last(reversed_states, lengths)])

    def weights() -> Mapping[str, Any]:
        return cell_weights(forward, "") | cell_weights(backward, "backward_")

    return BuiltLayer(apply, weights, kernel=_kernel(node, layer, options))


def _unrolls(node: Node, layer: Recurrent, options: BuildOptions) -> bool:
    """Whether to unroll the steps; see the module docstring. Never on a GPU, whose kernels run the loop."""
    steps = node.in_shape[0]
    match options.compiler:
        case "none":
            return False
        case "xla":
            on_jax = keras.backend.backend() == "jax"
            short = steps <= (MAX_UNROLLED if on_jax else MAX_UNROLLED_BY_XLA)
            narrow = on_jax and layer.units < MIN_UNROLLED_UNITS
            faster = isinstance(layer, SimpleRNN) and short and not narrow
        case "graph":
            faster = not isinstance(layer, GRU) and steps <= MAX_UNROLLED
        case _:
            assert_never(options.compiler)
    return faster and options.device == "cpu"


def _uses_cudnn(layer: Recurrent, options: BuildOptions) -> bool:
    """Whether Keras uses cuDNN's kernel for a layer on a GPU."""
    match keras.backend.backend():
        case "tensorflow":
            return not isinstance(layer, SimpleRNN) and options.compiler != "xla"
        case "jax":
            return isinstance(layer, LSTM)
        case _:
            return not isinstance(layer, SimpleRNN)


def _kernel(node: Node, layer: Recurrent, options: BuildOptions) -> str:
    """How the layer runs its steps, as recorded in the settings: "fused", "unrolled" or "loop"."""
    if options.device != "cpu" and _uses_cudnn(layer, options):
        return "fused"
    return "unrolled" if _unrolls(node, layer, options) else "loop"


def keras_recurrent(node: Node, layer: Recurrent, sequence: bool, options: BuildOptions) -> Any:
    """Keras' layer of this kind, initialised to zeros: the canonical weights replace them before training."""
    layer_class: Any
    arguments: dict[str, Any] = {}
    # XLA on TensorFlow cannot compile cuDNN's kernel; on JAX, "auto" makes the GRU fast too
    by_xla = options.compiler == "xla" and keras.backend.backend() == "tensorflow"
    cudnn: str | bool = False if by_xla else "auto"
    match layer:
        case SimpleRNN():
            layer_class = options.layer_class("SimpleRNN")
        case LSTM():
            layer_class, arguments = options.layer_class("LSTM"), {"use_cudnn": cudnn}
        case GRU():
            layer_class, arguments = options.layer_class("GRU"), {"use_cudnn": cudnn, "reset_after": True}
        case _:
            assert_never(layer)
    return layer_class(
        layer.units,
        return_sequences=sequence,
        kernel_initializer="zeros",
        recurrent_initializer="zeros",
        unroll=_unrolls(node, layer, options),
        **arguments,
    )


def cell_weights(layer: Any, prefix: str) -> dict[str, Any]:
    """The weights of a Keras recurrent layer, in its own layouts, which are the canonical ones: gates i, f,
    g, o of an LSTM, z, r, n of a GRU."""
    cell = layer.cell
    return {f"{prefix}{name}": getattr(cell, name) for name in ("kernel", "recurrent_kernel", "bias")}


class LastValid(keras.layers.Layer):  # type: ignore[misc]
    """Selects the state at the last valid step: `[batch, steps, units]` to `[batch, units]`."""

    def call(self, states: Any, lengths: Any) -> Any:
        """Select by a mask, with `lengths` int32 `[batch]`: its gradient is a mask as well, while the
        gradient of a gather is a scatter."""
        steps = ops.arange(states.shape[1], dtype="int32")
        chosen = ops.expand_dims(steps == ops.expand_dims(lengths - 1, 1), -1)
        return ops.sum(ops.where(chosen, states, 0.0), axis=1)


class Reversed(keras.layers.Layer):  # type: ignore[misc]
    """Reverses the valid steps of each row, `[batch, steps, features]`; padding stays in place."""

    def call(self, x: Any, lengths: Any) -> Any:
        """Reverse `x`, with `lengths` int32 `[batch]`."""
        step = ops.arange(x.shape[1], dtype="int32")
        ends = ops.expand_dims(lengths, 1)
        index = ops.where(step < ends, ends - 1 - step, step)
        return ops.take_along_axis(x, ops.expand_dims(index, -1), axis=1)
