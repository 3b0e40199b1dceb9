"""Recurrent layers: Keras' own, over all steps, padding included.

A Keras mask would leave the fused kernels, so there is none: of padded sequences the state at the last valid
step is taken out afterwards, and the backward direction gets rows that are reversed within their lengths.

Whether the steps are unrolled was measured on one core, 64 units, batch 32, time unrolled / time of the loop:

| steps | compiled by | simple | LSTM | GRU |
|-|-|-|-|-|
| 8 | XLA (JAX) | 0.85 | 1.0 | 0.9 |
| 28 | XLA (JAX; TensorFlow) | 0.85; 0.8 | 1.6; 2.4 | 1.15; 1.3 |
| 50 | XLA (JAX) | 0.85 | - | - |
| 28 | TensorFlow, no XLA | 0.6 | 0.7 | 1.0 |
| 28 | nothing (torch) | 1.0 | 1.0 | 1.0 |

Unrolled, XLA takes 9 s to compile 28 steps of an LSTM on JAX, against 2 for the loop, and 2 against 1 for 50
steps of a simple one. It compiles products of less than 32 units in line, which pays less and takes longer:
28 steps of 16 units 6 s against 1.5 for 0.95 of the step, 50 steps 14 s for 0.99 (`evenbench leaderboard
--phases`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, assert_never

import keras
from keras import ops

from adapters.keras.layer_parts import BuildOptions, BuiltLayer, Padding, need
from harness.core.network import GRU, LSTM, Node, SimpleRNN

Recurrent = SimpleRNN | LSTM | GRU

UNROLLED_BY_XLA, UNROLLED = 32, 64
"""The most steps that are unrolled where that pays: by XLA on TensorFlow, and elsewhere."""
NARROW = 32
"""Units from which on unrolled steps are compiled by XLA on JAX in little more time than the loop."""


def recurrent(node: Node, layer: Recurrent, setting: BuildOptions) -> BuiltLayer:
    """One or two directions, and what the layer returns of them."""
    if layer.bidirectional:
        return _padded_pair(node, layer, setting) if node.masked else _pair(node, layer, setting)
    sequence = layer.returns == "sequence"
    made = of_keras(node, layer, sequence or node.masked, setting)
    last = None if sequence or not node.masked else LastValid()

    def apply(x: Any, padding: Padding | None) -> Any:
        states = made(x)
        return states if last is None else last(states, need(padding).lengths)

    return BuiltLayer(apply, lambda: cell_weights(made, ""), kernel=_kernel(node, layer, setting))


def _pair(node: Node, layer: Recurrent, setting: BuildOptions) -> BuiltLayer:
    """Keras' own pair of directions, which reverses the sequence of the second one back."""
    made = keras.layers.Bidirectional(of_keras(node, layer, layer.returns == "sequence", setting))

    def weights() -> Mapping[str, Any]:
        return cell_weights(made.forward_layer, "") | cell_weights(made.backward_layer, "backward_")

    return BuiltLayer(lambda x, _: made(x), weights, kernel=_kernel(node, layer, setting))


def _padded_pair(node: Node, layer: Recurrent, setting: BuildOptions) -> BuiltLayer:
    """A pair of which the second goes through each row from its last valid step to its first."""
    onward, back = (of_keras(node, layer, True, setting) for _ in range(2))
    reverse, last, join = Reversed(), LastValid(), keras.layers.Concatenate()

    def apply(x: Any, padding: Padding | None) -> Any:
        lengths = need(padding).lengths
        states, reversed_states = onward(x), back(reverse(x, lengths))
        if layer.returns == "sequence":
            return join([states, reverse(reversed_states, lengths)])
        return join([last(states, lengths), last(reversed_states, lengths)])

    def weights() -> Mapping[str, Any]:
        return cell_weights(onward, "") | cell_weights(back, "backward_")

    return BuiltLayer(apply, weights, kernel=_kernel(node, layer, setting))


def _unrolls(node: Node, layer: Recurrent, setting: BuildOptions) -> bool:
    """Whether to unroll: see the head of this module. Never on a GPU, whose kernels are for the loop."""
    steps = node.in_shape[0]
    match setting.compiler:
        case "none":
            return False
        case "xla":
            on_jax = keras.backend.backend() == "jax"
            few = steps <= (UNROLLED if on_jax else UNROLLED_BY_XLA)
            pays = isinstance(layer, SimpleRNN) and few and not (on_jax and layer.units < NARROW)
        case "graph":
            pays = not isinstance(layer, GRU) and steps <= UNROLLED
        case _:
            assert_never(setting.compiler)
    return pays and setting.device == "cpu"


def _takes_cudnn(layer: Recurrent, setting: BuildOptions) -> bool:
    """Whether Keras takes cuDNN's kernel for a layer on a GPU."""
    match keras.backend.backend():
        case "tensorflow":
            return not isinstance(layer, SimpleRNN) and setting.compiler != "xla"
        case "jax":
            return isinstance(layer, LSTM)
        case _:
            return not isinstance(layer, SimpleRNN)


def _kernel(node: Node, layer: Recurrent, setting: BuildOptions) -> str:
    """What is recorded as the way in which the layer goes through its steps."""
    if setting.device != "cpu" and _takes_cudnn(layer, setting):
        return "fused"
    return "unrolled" if _unrolls(node, layer, setting) else "loop"


def of_keras(node: Node, layer: Recurrent, sequence: bool, setting: BuildOptions) -> Any:
    """Keras' layer of this kind, made of zeros: canonical weights come before anything is trained."""
    kind: Any
    options: dict[str, Any] = {}
    # XLA can't have cuDNN's kernel in what TensorFlow gives it; JAX's GRU is fast by this switch too
    by_xla = setting.compiler == "xla" and keras.backend.backend() == "tensorflow"
    cudnn: str | bool = False if by_xla else "auto"
    match layer:
        case SimpleRNN():
            kind = setting.kind("SimpleRNN")
        case LSTM():
            kind, options = setting.kind("LSTM"), {"use_cudnn": cudnn}
        case GRU():
            kind, options = setting.kind("GRU"), {"use_cudnn": cudnn, "reset_after": True}
        case _:
            assert_never(layer)
    return kind(
        layer.units,
        return_sequences=sequence,
        kernel_initializer="zeros",
        recurrent_initializer="zeros",
        unroll=_unrolls(node, layer, setting),
        **options,
    )


def cell_weights(made: Any, prefix: str) -> dict[str, Any]:
    """Keras' layouts are the canonical ones: gates i, f, g, o of an LSTM, z, r, n of a GRU."""
    cell = made.cell
    return {f"{prefix}{name}": getattr(cell, name) for name in ("kernel", "recurrent_kernel", "bias")}


class LastValid(keras.layers.Layer):  # type: ignore[misc]
    """The state at the last valid step, `[batch, steps, units]` to `[batch, units]`."""

    def call(self, states: Any, lengths: Any) -> Any:
        """`lengths` is int32 `[batch]`. Chosen by a mask: its gradient is one too, where a gather's is a
        scatter."""
        steps = ops.arange(states.shape[1], dtype="int32")
        chosen = ops.expand_dims(steps == ops.expand_dims(lengths - 1, 1), -1)
        return ops.sum(ops.where(chosen, states, 0.0), axis=1)


class Reversed(keras.layers.Layer):  # type: ignore[misc]
    """Each row's valid steps in reverse, `[batch, steps, features]`; padding stays where it is."""

    def call(self, x: Any, lengths: Any) -> Any:
        """`lengths` is int32 `[batch]`."""
        step = ops.arange(x.shape[1], dtype="int32")
        ends = ops.expand_dims(lengths, 1)
        index = ops.where(step < ends, ends - 1 - step, step)
        return ops.take_along_axis(x, ops.expand_dims(index, -1), axis=1)
