"""Recurrent layers that move everything possible out of the loop over steps.

A step needs the state before it, but one product of the inputs with their kernel can serve all steps, and so
can one for the gradient of each kernel, which JAX accumulates step by step. The loops keep only the products
with the recurrent kernel, and the gates. LSTM: Hochreiter and Schmidhuber (1997). GRU: Cho et al.,
arXiv:1406.1078, with the candidate reset after its product, as in cuDNN.
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

from adapters.keras.backends.jax.tuned_layers.barrier import optimization_barrier

State = tuple[Array, ...]
"""The arrays that a step passes to the next, `[batch, units]` each; the first is the output."""
Residuals = tuple[Array, ...]


@dataclass(frozen=True)
class Cell:
    """The elementwise part of a step.

    `forward(x, a, state)` takes the contributions of the inputs and of the state, `[batch, gates x units]`
    each, and returns the next state and the residuals for `backward`. `backward(residuals, d_state)` returns
    the gradients of x, of a, and of the state except for its path through a. `states` is the number of arrays
    in a state.
    """

    states: int
    forward: Callable[[Array, Array, State], tuple[State, Residuals]]
    backward: Callable[[Residuals, State], tuple[Array, Array, State]]


def _simple(x: Array, a: Array, state: State) -> tuple[State, Residuals]:
    h = jnp.tanh(x + a)
    return (h,), (h,)


def _simple_back(residuals: Residuals, d_state: State) -> tuple[Array, Array, State]:
    (h,) = residuals
    da = d_state[0] * (1 - h * h)
    return da, da, (jnp.zeros_like(h),)


def _lstm(x: Array, a: Array, state: State) -> tuple[State, Residuals]:
    i, f, g, o = jnp.split(x + a, 4, axis=1)
    i, f, g, o = jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)
    before = state[1]
    c = f * before + i * g
    squashed = jnp.tanh(c)
    return (o * squashed, c), (i, f, g, o, before, squashed)


def _lstm_back(residuals: Residuals, d_state: State) -> tuple[Array, Array, State]:
    i, f, g, o, before, squashed = residuals
    dh, dc = d_state
    dc = dc + dh * o * (1 - squashed * squashed)
    d_i, d_f = dc * g * i * (1 - i), dc * before * f * (1 - f)
    d_g, d_o = dc * i * (1 - g * g), dh * squashed * o * (1 - o)
    da = jnp.concatenate((d_i, d_f, d_g, d_o), 1)
    return da, da, (jnp.zeros_like(dh), dc * f)


def _gru(x: Array, a: Array, state: State) -> tuple[State, Residuals]:
    (x_z, x_r, x_n), (a_z, a_r, a_n) = jnp.split(x, 3, axis=1), jnp.split(a, 3, axis=1)
    z, r = jax.nn.sigmoid(x_z + a_z), jax.nn.sigmoid(x_r + a_r)
    n = jnp.tanh(x_n + r * a_n)
    (before,) = state
    return (z * before + (1 - z) * n,), (z, r, n, a_n, before)


def _gru_back(residuals: Residuals, d_state: State) -> tuple[Array, Array, State]:
    z, r, n, a_n, before = residuals
    (dh,) = d_state
    d_n = dh * (1 - z) * (1 - n * n)
    d_z, d_r = dh * (before - n) * z * (1 - z), d_n * a_n * r * (1 - r)
    return jnp.concatenate((d_z, d_r, d_n), 1), jnp.concatenate((d_z, d_r, d_n * r), 1), (dh * z,)


SIMPLE = Cell(1, _simple, _simple_back)
LONG_SHORT = Cell(2, _lstm, _lstm_back)
GATED = Cell(1, _gru, _gru_back)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def recur(cell: Cell, unroll: bool, sequence: bool, x: Array, kernel: Array, bias: Array | None) -> Array:
    """The outputs of a layer with an initial state of zeros: of all steps, `[steps, batch, units]`, if
    `sequence`, else of the last, `[batch, units]`.

    `x` is `[steps, batch, gates x units]`, the product of the inputs with their kernel. `kernel` is the
    recurrent kernel, `[units, gates x units]`; `bias` its bias, if it has one.
    """

    def step(state: State, x_t: Array) -> tuple[State, Array | None]:
        after, _ = cell.forward(x_t, _recurrent_product(state, kernel, bias), state)
        return after, after[0] if sequence else None

    last, outputs = lax.scan(step, _zeros(cell, x, kernel), x, unroll=unroll or 1)
    return last[0] if outputs is None else outputs


def _forward(
    cell: Cell, unroll: bool, sequence: bool, x: Array, kernel: Array, bias: Array | None
) -> tuple[Array, tuple[Any, ...]]:
    def step(state: State, x_t: Array) -> tuple[State, tuple[Array, Residuals]]:
        after, residuals = cell.forward(x_t, _recurrent_product(state, kernel, bias), state)
        return after, (after[0], residuals)

    last, (outputs, residuals) = lax.scan(step, _zeros(cell, x, kernel), x, unroll=unroll or 1)
    return outputs if sequence else last[0], (outputs, residuals, kernel, bias)


def _backward(
    cell: Cell, unroll: bool, sequence: bool, saved: tuple[Any, ...], dy: Array
) -> tuple[Array, Array, Array | None]:
    outputs, residuals, kernel, bias = saved
    kernel_transposed = optimization_barrier(kernel.T)

    def step(d_state: State, inputs: tuple[Residuals, Array | None]) -> tuple[State, tuple[Array, Array]]:
        residuals_t, dy_t = inputs
        dh, *others = d_state
        dx, da, (d_before, *rest) = cell.backward(residuals_t, (dh if dy_t is None else dh + dy_t, *others))
        return (d_before + da @ kernel_transposed, *rest), (dx, da)

    zeros = (jnp.zeros_like(outputs[0]),) * cell.states
    start = zeros if sequence else (dy, *zeros[1:])
    _, (dx, da) = lax.scan(
        step, start, (residuals, dy if sequence else None), reverse=True, unroll=unroll or 1
    )
    # the initial state is zero, so the first step contributes nothing to the kernel's gradient
    before, slopes = (each.reshape(-1, each.shape[-1]) for each in (outputs[:-1], da[1:]))
    return dx, before.T @ slopes, None if bias is None else da.sum((0, 1))


def _recurrent_product(state: State, kernel: Array, bias: Array | None) -> Array:
    product = state[0] @ kernel
    return product if bias is None else product + bias


def _zeros(cell: Cell, x: Array, kernel: Array) -> State:
    return (jnp.zeros((x.shape[1], kernel.shape[0]), x.dtype),) * cell.states


recur.defvjp(_forward, _backward)


registered = keras.saving.register_keras_serializable("evenbench")
"""Registers a layer class: `Bidirectional` creates its second layer from the first one's configuration, which
refers to the class by name."""


class _Recurrent:
    """The call of a Keras recurrent layer with an initial state of zeros, without masks and dropout."""

    cell_type: Cell

    def call(
        self: Any, sequences: Array, initial_state: Any = None, mask: Any = None, training: bool | None = None
    ) -> Array:
        """Map `[batch, steps, features]` to `[batch, steps, units]`, or to `[batch, units]` of the last
        step."""
        if initial_state is not None or mask is not None:
            raise NotImplementedError("initial_state and mask are not supported")
        cell = self.cell
        kernel, recurrent, bias = (
            keras.ops.convert_to_tensor(each) for each in (cell.kernel, cell.recurrent_kernel, cell.bias)
        )
        input_bias, recurrent_bias = bias if bias.ndim == 2 else (bias, None)
        steps = sequences.swapaxes(0, 1)
        if self.go_backwards:
            steps = steps[::-1]
        rows = steps.reshape(-1, steps.shape[-1])
        x = (rows @ kernel + input_bias).reshape(*steps.shape[:2], -1)
        outputs = recur(self.cell_type, self.unroll, self.return_sequences, x, recurrent, recurrent_bias)
        return outputs.swapaxes(0, 1) if self.return_sequences else outputs


@registered
class SimpleRNN(_Recurrent, keras.layers.SimpleRNN):  # type: ignore[misc]
    """Simple recurrent layer with tanh."""

    cell_type = SIMPLE


@registered
class LSTM(_Recurrent, keras.layers.LSTM):  # type: ignore[misc]
    """LSTM with gates in Keras' order: input, forget, candidate, output."""

    cell_type = LONG_SHORT


@registered
class GRU(_Recurrent, keras.layers.GRU):  # type: ignore[misc]
    """GRU with gates in Keras' order: update, reset, candidate; the reset is applied after the product."""

    cell_type = GATED
