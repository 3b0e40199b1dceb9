"""Keras on JAX, each execution as in a script written for it alone, with the adapter's layers and XLA
options, so that differences are the overhead of evenbench."""

from __future__ import annotations

import os
import sys
from functools import partial

from adapters.keras.xla_flags import XLA_FLAGS

os.environ |= {"KERAS_BACKEND": "jax", "XLA_FLAGS": XLA_FLAGS["jax"]}

import jax
import keras
import numpy as np

from adapters.keras.backends.jax.xla_options import compiler_options
from tests.bench.bare_fit import arrays, idiomatic, order
from tests.bench.networks_keras import network, parameters
from tests.bench.turns import Turns

__all__ = ["compiled", "epoch", "idiomatic"]

SMALL = ("fnn", "rnn")  # XLA's own products are faster


def compiled(name: str, x: np.ndarray, y: np.ndarray, turns: Turns) -> None:
    """One jitted step, its state donated."""
    step, state = _step(name, x.shape[1:], turns)
    step = jax.jit(step, donate_argnums=0, compiler_options=compiler_options(name in SMALL))
    x, y = jax.device_put(x), jax.device_put(y)
    for turn in turns:
        batches = order(len(x))
        turn.start()
        losses = []
        for rows in batches:
            state, loss = step(state, x, y, rows)
            losses.append(loss)
        jax.block_until_ready(state)
        turn.stop()
        turn.done(float(np.mean(losses)))


def epoch(name: str, x: np.ndarray, y: np.ndarray, turns: Turns) -> None:
    """All steps of an epoch as one `lax.scan`, computed in this thread."""
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    step, state = _step(name, x.shape[1:], turns)
    x, y = jax.device_put(x), jax.device_put(y)

    @partial(jax.jit, donate_argnums=0, compiler_options=compiler_options(name in SMALL))
    def train(state, x, y, order):
        return jax.lax.scan(lambda state, rows: step(state, x, y, rows), state, order)

    for turn in turns:
        batches = order(len(x))
        turn.start()
        state, losses = train(state, x, y, batches)
        jax.block_until_ready(state)
        turn.stop()
        turn.done(float(losses.mean()))


def _step(name, shape, turns):
    """The step (state, x, y, rows) -> (state, loss), and the initial state."""
    model, optimizer = network(name, shape, unrolled=name == "rnn", own=True), keras.optimizers.Adam(1e-3)
    turns.parameters = parameters(model)
    optimizer.build(model.trainable_variables)

    def loss_of(trained, others, x, y):
        logits, others = model.stateless_call(trained, others, x, training=True)
        losses = keras.losses.sparse_categorical_crossentropy(y, logits, from_logits=True)
        return losses.mean(), others

    def step(state, x, y, rows):
        trained, others, slots = state
        (loss, others), gradients = jax.value_and_grad(loss_of, has_aux=True)(
            trained, others, x[rows], y[rows]
        )
        trained, slots = optimizer.stateless_apply(slots, gradients, trained)
        return (trained, others, slots), loss

    groups = (model.trainable_variables, model.non_trainable_variables, optimizer.variables)
    return step, tuple([variable.value for variable in group] for group in groups)


if __name__ == "__main__":
    name, execution, path = sys.argv[1:]
    globals()[execution](name, *arrays(path), Turns())
