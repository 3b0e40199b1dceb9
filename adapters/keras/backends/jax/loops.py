"""The training loops on JAX: one jitted step, the whole epoch as one `lax.scan`, or `fit`.

The state (weights, dropout seeds, optimizer) is a tuple of arrays that each call takes as a donated argument
and returns, so that XLA updates it in place. Keras' stateless functions are traced once and cost nothing
afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from adapters.keras.backends.jax.compilations import CountedLoop
from adapters.keras.backends.jax.xla_options import cpu_options
from adapters.keras.fit import ArraySource, Fit
from adapters.keras.layer_parts import TUNED_LAYERS
from adapters.keras.parts import Array, Inputs, Parts, build_parts, native
from adapters.keras.program import Program
from harness.core.adapter import Epoch, Execution, Plan

State = tuple[list[Any], list[Any], list[Any]]
Options = dict[str, object]

EXECUTIONS: tuple[Execution, ...] = ("idiomatic", "compiled", "epoch")


def build(plan: Plan) -> Program:
    """Build the program of a plan."""
    if plan.execution == "idiomatic":
        parts = build_parts(plan, "none")
        return Program(parts, CountedLoop(_fit(parts)), {"xla": True})
    parts = build_parts(plan, "xla")
    options = cpu_options(plan) if plan.device == "cpu" else {}
    settings = {"xla": True, "xla_options": options, "own_layers": tuned_layers(parts.model.keras)}
    return Program(parts, CountedLoop(_CompiledLoop(parts, options)), settings)


def tuned_layers(model: Any) -> list[str]:
    """The names of the tuned layer classes and activation functions in a Keras model."""
    layers = list(model._flatten_layers())
    used: list[Any] = [*map(type, layers), *(getattr(layer, "activation", None) for layer in layers)]
    return sorted(
        {each.__name__ for each in used if getattr(each, "__module__", "").startswith(TUNED_LAYERS)}
    )


def _fit(parts: Parts) -> Fit:
    forward = _forward(parts)

    def predict(inputs: Inputs) -> Array:
        trained, others, _ = _state(parts)
        return np.asarray(forward(trained, others, inputs))

    def sync() -> None:
        # a single variable: to read the values of all from Keras takes 30 µs more
        _wait([variable.value for variable in parts.model.keras.trainable_variables[:1]])

    return Fit(
        parts,
        predict,
        seed=lambda seed: None,
        sync=sync,
        compilations=lambda: 0,
        source=ArraySource(parts.plan.steps, parts.plan.batch_size),
    )


class _CompiledLoop:
    """Holds the state as arrays, and calls the program of an epoch or of a step with it."""

    def __init__(self, parts: Parts, options: Options) -> None:
        self._parts = parts
        self._forward = _forward(parts)
        self._scanned = parts.plan.execution == "epoch"
        self._epoch: Callable[..., Any] = (_scanned if self._scanned else _stepped)(parts, options)
        self._data: tuple[Inputs, Any] = ((), None)
        self._state: State = ([], [], [])
        self._table: Any = None
        self._losses: Any = np.empty(0)

    def feed(self, inputs: Inputs, y: Array) -> None:
        self._data = jax.device_put((inputs, y))

    def restart(self, seed: int) -> None:
        # Copies, because the state is donated, and the arrays of Keras' variables must stay valid.
        self._state = jax.tree.map(lambda value: jax.device_put(np.asarray(value)), _state(self._parts))

    def train(self, epochs: Iterable[Epoch]) -> None:
        for order, rates in epochs:
            if (table := self._parts.optimizer.new_table(rates)) is not None:
                # A NumPy argument costs a call 5 µs, `device_put` 100 µs: the former is less for a single
                # call.
                self._table = table if self._scanned else jax.device_put(table)
            self._state, self._losses = self._epoch(self._state, self._table, *self._data, order)

    def losses(self) -> Array:
        # `device_get` fetches the losses of all steps at once, but takes 10 times as long for a single array
        return np.asarray(self._losses if self._scanned else jax.device_get(self._losses))

    def predict(self, inputs: Inputs) -> Array:
        trained, others, _ = self._state
        return np.asarray(self._forward(trained, others, inputs))

    def read(self, variables: Sequence[Any]) -> list[Array]:
        variables_of_state = (variable for group in _variables(self._parts) for variable in group)
        values = (value for group in self._state for value in group)
        current = {id(variable): value for variable, value in zip(variables_of_state, values, strict=True)}
        return [np.asarray(current[id(variable)]) for variable in variables]

    def sync(self) -> None:
        _wait(self._state[0])

    def compilations(self) -> int:
        return 0


def _wait(weights: Sequence[Any]) -> None:
    """Wait for weights. The other results of the same program are ready at the same time."""
    for value in weights:
        value.block_until_ready()


def _variables(parts: Parts) -> State:
    """The variables that change in training: the model's, and the optimizer's except its rates."""
    model, optimizer = parts.model.keras, parts.optimizer
    slots = [variable for variable in optimizer.keras.variables if variable is not optimizer.rates.table]
    return list(model.trainable_variables), list(model.non_trainable_variables), slots


def _state(parts: Parts) -> State:
    trained, others, slots = ([variable.value for variable in group] for group in _variables(parts))
    return trained, others, slots


def _forward(parts: Parts) -> Callable[..., jax.Array]:
    """Outputs in evaluation mode from (trained, others, inputs)."""
    model = parts.model.keras

    def forward(trained: list[jax.Array], others: list[jax.Array], inputs: Inputs) -> jax.Array:
        outputs: jax.Array = model.stateless_call(trained, others, native(inputs), training=False)[0]
        return outputs

    return jax.jit(forward)


def _step(parts: Parts) -> Callable[..., tuple[State, jax.Array]]:
    """One training step, not compiled: (state, table of rates, inputs, y, rows) to (state, loss)."""
    model, optimizer = parts.model.keras, parts.optimizer.keras
    index = [id(variable) for variable in optimizer.variables].index(id(parts.optimizer.rates.table))

    def loss_of(trained: Any, others: Any, inputs: Inputs, y: jax.Array) -> tuple[jax.Array, Any]:
        outputs, others = model.stateless_call(trained, others, native(inputs), training=True)
        return parts.loss(y, outputs), others

    def step(
        state: State, table: jax.Array, inputs: Inputs, y: jax.Array, rows: jax.Array
    ) -> tuple[State, jax.Array]:
        trained, others, slots = state
        # The harness's row numbers are within bounds, so the gather needs no checks and no fill values.
        batch, targets = jax.tree.map(lambda each: each.at[rows].get(mode="promise_in_bounds"), (inputs, y))
        gradient = jax.value_and_grad(loss_of, has_aux=True)
        (loss, others), gradients = gradient(trained, others, batch, targets)
        with_table = [*slots[:index], table, *slots[index:]]
        trained, updated = optimizer.stateless_apply(with_table, gradients, trained)
        return (trained, others, [*updated[:index], *updated[index + 1 :]]), loss

    return step


def _scanned(parts: Parts, options: Options) -> Callable[..., tuple[State, jax.Array]]:
    """The whole epoch as one program."""
    step = _step(parts)

    @partial(jax.jit, donate_argnums=0, compiler_options=options)
    def epoch(
        state: State, table: jax.Array, inputs: Inputs, y: jax.Array, order: jax.Array
    ) -> tuple[State, jax.Array]:
        return jax.lax.scan(lambda state, rows: step(state, table, inputs, y, rows), state, order)

    return epoch


def _stepped(parts: Parts, options: Options) -> Callable[..., tuple[State, list[jax.Array]]]:
    """The epoch as one call per step. Row numbers are passed as NumPy arrays, which is faster than slicing
    `order` on the device; the losses stay on the device until they are read."""
    step = jax.jit(_step(parts), donate_argnums=0, compiler_options=options)

    def epoch(
        state: State, table: jax.Array, inputs: Inputs, y: jax.Array, order: Array
    ) -> tuple[State, list[jax.Array]]:
        losses = []
        for rows in order:
            state, loss = step(state, table, inputs, y, rows)
            losses.append(loss)
        return state, losses

    return epoch
