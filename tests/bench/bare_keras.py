"""Keras on TensorFlow, each execution as in a script written for it alone."""

from __future__ import annotations

import os
import sys

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"  # as in the adapter: one thread

import keras
import numpy as np
import tensorflow as tf

from tests.bench.bare_fit import arrays, idiomatic, order
from tests.bench.networks_keras import network, parameters
from tests.bench.turns import Turns

__all__ = ["compiled", "epoch", "idiomatic"]

XLA = ("fnn", "rnn", "lstm", "transformer")  # on a CPU, XLA slows convolutions down


def compiled(name: str, x: np.ndarray, y: np.ndarray, turns: Turns) -> None:
    """One step as a `tf.function`, with XLA if that is faster."""
    step = tf.function(_step(name, x, y, turns), jit_compile=name in XLA)
    for turn in turns:
        batches = tf.unstack(tf.constant(order(len(x))))
        turn.start()
        losses = [step(rows) for rows in batches]
        tf.test.experimental.sync_devices()
        turn.stop()
        turn.done(float(tf.reduce_mean(losses)))


def epoch(name: str, x: np.ndarray, y: np.ndarray, turns: Turns) -> None:
    """All steps of an epoch as one `tf.function`, with XLA if that is faster."""
    step = _step(name, x, y, turns)

    @tf.function(jit_compile=name in XLA)
    def train(order):
        steps = order.shape[0]
        losses = tf.TensorArray(tf.float32, size=steps)
        for i in tf.range(steps):
            losses = losses.write(i, step(order[i]))
        return losses.stack()

    for turn in turns:
        batches = order(len(x))
        turn.start()
        losses = train(tf.constant(batches))
        tf.test.experimental.sync_devices()
        turn.stop()
        turn.done(float(tf.reduce_mean(losses)))


def _step(name, x, y, turns):
    model, optimizer = network(name, x.shape[1:], unrolled=name == "rnn"), keras.optimizers.Adam(1e-3)
    turns.parameters = parameters(model)
    x, y = tf.constant(x), tf.constant(y)
    optimizer.build(model.trainable_variables)

    def step(rows):
        with tf.GradientTape() as tape:
            logits = model(tf.gather(x, rows), training=True)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.gather(y, rows), logits)
            loss = tf.reduce_mean(losses)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    return step


if __name__ == "__main__":
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    name, execution, path = sys.argv[1:]
    globals()[execution](name, *arrays(path), Turns())
