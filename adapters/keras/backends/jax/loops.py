"""Keras on JAX: one jitted step, or the whole epoch as one `lax.scan`.

The state (weights, dropout streams, optimizer) is a tuple of arrays that each call takes and gives back,
donated, so that XLA updates it in place. Keras' stateless functions are traced once and cost nothing after.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from adapters.keras.backends.jax.compilations import CountedLoop
from adapters.keras.backends.jax.xla_options import cpu_options
from adapters.keras.fit import Arrays, Fit
from adapters.keras.layer_parts import ours
from adapters.keras.program import Array, Inputs, Parts, Program, native, parts
from harness.core.adapter import Epoch, Execution, Plan

State = tuple[list[Any], list[Any], list[Any]]
Options = dict[str, object]

EXECUTIONS: tuple[Execution, ...] = ("idiomatic", "compiled", "epoch")


def build(plan: Plan) -> Program:
    """The program of a plan."""
    idiomatic = plan.execution == "idiomatic"
    made = parts(plan, "none" if idiomatic else "xla")
    if idiomatic:
        return Program(made, CountedLoop(_fit(made)), {"xla": True})
    told = cpu_options(plan) if plan.device == "cpu" else {}
    settings = {"xla": True, "xla_options": told, "own_layers": ours(made.model.keras)}
    return Program(made, CountedLoop(_Compiled(made, told)), settings)


def _fit(made: Parts) -> Fit:
    forward = _forward(made)

    def predict(inputs: Inputs) -> Array:
        trained, others, _ = _state(made)
        return np.asarray(forward(trained, others, inputs))

    def sync() -> None:
        # one of them: to ask Keras for the value of each takes 30 µs more
        _wait([variable.value for variable in made.model.keras.trainable_variables[:1]])

    return Fit(
        made,
        predict,
        seed=lambda seed: None,
        sync=sync,
        compilations=lambda: 0,
        source=Arrays(made.plan.steps, made.plan.batch_size),
    )


class _Compiled:
    """The state as arrays, and the program of an epoch or of a step that takes it and gives it back."""

    def __init__(self, made: Parts, options: Options) -> None:
        self._made = made
        self._forward = _forward(made)
        self._scanned = made.plan.execution == "epoch"
        self._epoch: Callable[..., Any] = (_scanned if self._scanned else _stepped)(made, options)
        self._data: tuple[Inputs, Any] = ((), None)
        self._state: State = ([], [], [])
        self._table: Any = None
        self._losses: Any = np.empty(0)

    def feed(self, inputs: Inputs, y: Array) -> None:
        self._data = jax.device_put((inputs, y))

    def restart(self, seed: int) -> None:
        # Copies, because the state is donated and Keras' variables must keep theirs.
        self._state = jax.tree.map(lambda value: jax.device_put(np.asarray(value)), _state(self._made))

    def train(self, epochs: Iterable[Epoch]) -> None:
        for order, rates in epochs:
            if (table := self._made.optimizer.new_table(rates)) is not None:
                # A call takes a NumPy array in 5 µs, `device_put` needs 100: for one call that is less.
                self._table = table if self._scanned else jax.device_put(table)
            self._state, self._losses = self._epoch(self._state, self._table, *self._data, order)

    def losses(self) -> Array:
        # `device_get` fetches the losses of steps together, and takes 10 times as long as this for one array
        return np.asarray(self._losses if self._scanned else jax.device_get(self._losses))

    def predict(self, inputs: Inputs) -> Array:
        trained, others, _ = self._state
        return np.asarray(self._forward(trained, others, inputs))

    def read(self, variables: Sequence[Any]) -> list[Array]:
        held = (variable for group in _variables(self._made) for variable in group)
        values = (value for group in self._state for value in group)
        now = {id(variable): value for variable, value in zip(held, values, strict=True)}
        return [np.asarray(now[id(variable)]) for variable in variables]

    def sync(self) -> None:
        _wait(self._state[0])

    def compilations(self) -> int:
        return 0


def _wait(weights: Sequence[Any]) -> None:
    """Wait for weights; the rest of what a call gives back, which is one program, is ready when they are."""
    for value in weights:
        value.block_until_ready()


def _variables(made: Parts) -> State:
    """The variables that change while training: the model's, and the optimizer's but for its rates."""
    model, optimizer = made.model.keras, made.optimizer
    slots = [variable for variable in optimizer.keras.variables if variable is not optimizer.rates.table]
    return list(model.trainable_variables), list(model.non_trainable_variables), slots


def _state(made: Parts) -> State:
    trained, others, slots = ([variable.value for variable in group] for group in _variables(made))
    return trained, others, slots


def _forward(made: Parts) -> Callable[..., jax.Array]:
    """Outputs in evaluation mode from (trained, others, inputs)."""
    model = made.model.keras

    def forward(trained: list[jax.Array], others: list[jax.Array], inputs: Inputs) -> jax.Array:
        outputs: jax.Array = model.stateless_call(trained, others, native(inputs), training=False)[0]
        return outputs

    return jax.jit(forward)


def _step(made: Parts) -> Callable[..., tuple[State, jax.Array]]:
    """One training step, not compiled: (state, table of rates, inputs, y, rows) to (state, loss)."""
    model, optimizer = made.model.keras, made.optimizer.keras
    place = [id(variable) for variable in optimizer.variables].index(id(made.optimizer.rates.table))

    def loss_of(trained: Any, others: Any, inputs: Inputs, y: jax.Array) -> tuple[jax.Array, Any]:
        outputs, others = model.stateless_call(trained, others, native(inputs), training=True)
        return made.loss(y, outputs), others

    def step(
        state: State, table: jax.Array, inputs: Inputs, y: jax.Array, rows: jax.Array
    ) -> tuple[State, jax.Array]:
        trained, others, slots = state
        # The harness's rows lie within the data, so nothing needs to be checked or filled in.
        batch, targets = jax.tree.map(lambda each: each.at[rows].get(mode="promise_in_bounds"), (inputs, y))
        gradient = jax.value_and_grad(loss_of, has_aux=True)
        (loss, others), gradients = gradient(trained, others, batch, targets)
        given = [*slots[:place], table, *slots[place:]]
        trained, taken = optimizer.stateless_apply(given, gradients, trained)
        return (trained, others, [*taken[:place], *taken[place + 1 :]]), loss

    return step


def _scanned(made: Parts, options: Options) -> Callable[..., tuple[State, jax.Array]]:
    """The whole epoch as one program."""
    step = _step(made)

    @partial(jax.jit, donate_argnums=0, compiler_options=options)
    def epoch(
        state: State, table: jax.Array, inputs: Inputs, y: jax.Array, order: jax.Array
    ) -> tuple[State, jax.Array]:
        return jax.lax.scan(lambda state, rows: step(state, table, inputs, y, rows), state, order)

    return epoch


def _stepped(made: Parts, options: Options) -> Callable[..., tuple[State, list[jax.Array]]]:
    """The epoch as one call a step. The rows go in as NumPy arrays, which is faster than to slice `order` on
    the device; the losses stay there until somebody asks."""
    step = jax.jit(_step(made), donate_argnums=0, compiler_options=options)

    def epoch(
        state: State, table: jax.Array, inputs: Inputs, y: jax.Array, order: Array
    ) -> tuple[State, list[jax.Array]]:
        losses = []
        for rows in order:
            state, loss = step(state, table, inputs, y, rows)
            losses.append(loss)
        return state, losses

    return epoch
