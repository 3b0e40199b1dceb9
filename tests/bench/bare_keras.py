"""The FNN in Keras on TensorFlow, each execution as a script for it alone would be written."""

from __future__ import annotations

import os
import sys

os.environ["KERAS_BACKEND"] = "tensorflow"

import keras
import numpy as np
import tensorflow as tf

from tests.bench.bare_fit import arrays, idiomatic, network, order
from tests.bench.turns import Turns

__all__ = ["compiled", "epoch", "idiomatic"]


def compiled(x: np.ndarray, y: np.ndarray, turns: Turns) -> None:
    """One step as a `tf.function`, with XLA."""
    step = tf.function(_step(x, y), jit_compile=True)
    for turn in turns:
        batches = tf.unstack(tf.constant(order(len(x))))
        turn.start()
        losses = [step(rows) for rows in batches]
        tf.test.experimental.sync_devices()
        turn.stop()
        turn.done(float(tf.reduce_mean(losses)))


def epoch(x: np.ndarray, y: np.ndarray, turns: Turns) -> None:
    """All steps of an epoch as one `tf.function`, with XLA."""
    step = _step(x, y)

    @tf.function(jit_compile=True)
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


def _step(x, y):
    x, y = tf.constant(x), tf.constant(y)
    model, optimizer = network(), keras.optimizers.Adam(1e-3)
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
    globals()[sys.argv[1]](*arrays(sys.argv[2]), Turns())
