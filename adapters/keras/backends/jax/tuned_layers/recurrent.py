"""Recurrent layers that do outside of the loop over steps what needs no loop.

A step needs the state before it, but the product of the inputs with their kernel can be one for all steps,
and so can the gradients of both kernels, which JAX adds up step by step. What is left in the loops are
products with the recurrent kernel, and the gates. Hochreiter and Schmidhuber (1997) for the LSTM, Cho et al.,
arXiv:1406.1078, for the GRU, whose candidate is reset after its product, as in cuDNN.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import keras
from jax import Array, lax

from adapters.keras.backends.jax.tuned_layers.barrier import apart

State = tuple[Array, ...]
"""What a step hands to the next, `[batch, units]` each; the first is the output."""
Kept = tuple[Array, ...]


@dataclass(frozen=True)
class Cell:
    """The part of a step that works on each unit alone.

    `forward(x, a, state)` takes what comes from the inputs and from the state, `[batch, gates x units]` each,
    and gives the next state and what `backward` needs of it. `backward(kept, d_state)` gives the gradients of
    x, a, and of the state as far as it does not go through a. `states` is how many arrays a state has.
    """

    states: int
    forward: Callable[[Array, Array, State], tuple[State, Kept]]
    backward: Callable[[Kept, State], tuple[Array, Array, State]]


def _simple(x: Array, a: Array, state: State) -> tuple[State, Kept]:
    h = jnp.tanh(x + a)
    return (h,), (h,)


def _simple_back(kept: Kept, d_state: State) -> tuple[Array, Array, State]:
    (h,) = kept
    da = d_state[0] * (1 - h * h)
    return da, da, (jnp.zeros_like(h),)


def _lstm(x: Array, a: Array, state: State) -> tuple[State, Kept]:
    i, f, g, o = jnp.split(x + a, 4, axis=1)
    i, f, g, o = jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)
    before = state[1]
    c = f * before + i * g
    squashed = jnp.tanh(c)
    return (o * squashed, c), (i, f, g, o, before, squashed)


def _lstm_back(kept: Kept, d_state: State) -> tuple[Array, Array, State]:
    i, f, g, o, before, squashed = kept
    dh, dc = d_state
    dc = dc + dh * o * (1 - squashed * squashed)
    d_i, d_f = dc * g * i * (1 - i), dc * before * f * (1 - f)
    d_g, d_o = dc * i * (1 - g * g), dh * squashed * o * (1 - o)
    da = jnp.concatenate((d_i, d_f, d_g, d_o), 1)
    return da, da, (jnp.zeros_like(dh), dc * f)


def _gru(x: Array, a: Array, state: State) -> tuple[State, Kept]:
    (x_z, x_r, x_n), (a_z, a_r, a_n) = jnp.split(x, 3, axis=1), jnp.split(a, 3, axis=1)
    z, r = jax.nn.sigmoid(x_z + a_z), jax.nn.sigmoid(x_r + a_r)
    n = jnp.tanh(x_n + r * a_n)
    (before,) = state
    return (z * before + (1 - z) * n,), (z, r, n, a_n, before)


def _gru_back(kept: Kept, d_state: State) -> tuple[Array, Array, State]:
    z, r, n, a_n, before = kept
    (dh,) = d_state
    d_n = dh * (1 - z) * (1 - n * n)
    d_z, d_r = dh * (before - n) * z * (1 - z), d_n * a_n * r * (1 - r)
    return jnp.concatenate((d_z, d_r, d_n), 1), jnp.concatenate((d_z, d_r, d_n * r), 1), (dh * z,)


SIMPLE = Cell(1, _simple, _simple_back)
LONG_SHORT = Cell(2, _lstm, _lstm_back)
GATED = Cell(1, _gru, _gru_back)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def recur(cell: Cell, unroll: bool, sequence: bool, x: Array, kernel: Array, bias: Array | None) -> Array:
    """The outputs of a layer that starts from zeros: of all steps, `[steps, batch, units]`, or of the last.

    `x` is `[steps, batch, gates x units]`, the inputs' product with their kernel; `kernel` the recurrent one,
    `[units, gates x units]`, with a bias of its own or none.
    """

    def step(state: State, x_t: Array) -> tuple[State, Array | None]:
        after, _ = cell.forward(x_t, _from(state, kernel, bias), state)
        return after, after[0] if sequence else None

    last, outputs = lax.scan(step, _zeros(cell, x, kernel), x, unroll=unroll or 1)
    return last[0] if outputs is None else outputs


def _forward(
    cell: Cell, unroll: bool, sequence: bool, x: Array, kernel: Array, bias: Array | None
) -> tuple[Array, tuple[Any, ...]]:
    def step(state: State, x_t: Array) -> tuple[State, tuple[Array, Kept]]:
        after, kept = cell.forward(x_t, _from(state, kernel, bias), state)
        return after, (after[0], kept)

    last, (outputs, kept) = lax.scan(step, _zeros(cell, x, kernel), x, unroll=unroll or 1)
    return outputs if sequence else last[0], (outputs, kept, kernel, bias)


def _backward(
    cell: Cell, unroll: bool, sequence: bool, saved: tuple[Any, ...], dy: Array
) -> tuple[Array, Array, Array | None]:
    outputs, kept, kernel, bias = saved
    across = apart(kernel.T)

    def step(d_state: State, of_step: tuple[Kept, Array | None]) -> tuple[State, tuple[Array, Array]]:
        kept_t, dy_t = of_step
        dh, *others = d_state
        dx, da, (d_before, *rest) = cell.backward(kept_t, (dh if dy_t is None else dh + dy_t, *others))
        return (d_before + da @ across, *rest), (dx, da)

    none = (jnp.zeros_like(outputs[0]),) * cell.states
    start = none if sequence else (dy, *none[1:])
    _, (dx, da) = lax.scan(step, start, (kept, dy if sequence else None), reverse=True, unroll=unroll or 1)
    # the first step's state is zero, so it adds nothing to the kernel's gradient
    before, slopes = (each.reshape(-1, each.shape[-1]) for each in (outputs[:-1], da[1:]))
    return dx, before.T @ slopes, None if bias is None else da.sum((0, 1))


def _from(state: State, kernel: Array, bias: Array | None) -> Array:
    product = state[0] @ kernel
    return product if bias is None else product + bias


def _zeros(cell: Cell, x: Array, kernel: Array) -> State:
    return (jnp.zeros((x.shape[1], kernel.shape[0]), x.dtype),) * cell.states


recur.defvjp(_forward, _backward)


registered = keras.saving.register_keras_serializable("evenbench")
"""`Bidirectional` makes its second layer from the first one's configuration, which names its class."""


class _Recurrent:
    """What a recurrent layer of Keras does from zeros, without masks and dropout."""

    kind: Cell

    def call(
        self: Any, sequences: Array, initial_state: Any = None, mask: Any = None, training: bool | None = None
    ) -> Array:
        """`[batch, steps, features]` to `[batch, steps, units]`, or `[batch, units]` of the last step."""
        if initial_state is not None or mask is not None:
            raise NotImplementedError("a state to begin with, or a mask")
        cell = self.cell
        kernel, recurrent, bias = (
            keras.ops.convert_to_tensor(each) for each in (cell.kernel, cell.recurrent_kernel, cell.bias)
        )
        own, of_state = bias if bias.ndim == 2 else (bias, None)
        steps = sequences.swapaxes(0, 1)
        if self.go_backwards:
            steps = steps[::-1]
        rows = steps.reshape(-1, steps.shape[-1])
        x = (rows @ kernel + own).reshape(*steps.shape[:2], -1)
        outputs = recur(self.kind, self.unroll, self.return_sequences, x, recurrent, of_state)
        return outputs.swapaxes(0, 1) if self.return_sequences else outputs


@registered
class SimpleRNN(_Recurrent, keras.layers.SimpleRNN):  # type: ignore[misc]
    """With tanh."""

    kind = SIMPLE


@registered
class LSTM(_Recurrent, keras.layers.LSTM):  # type: ignore[misc]
    """With gates in Keras' order: input, forget, candidate, output."""

    kind = LONG_SHORT


@registered
class GRU(_Recurrent, keras.layers.GRU):  # type: ignore[misc]
    """With gates in Keras' order: update, reset, candidate; reset after the product."""

    kind = GATED
