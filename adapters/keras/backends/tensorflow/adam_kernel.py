"""Adam's update as the single kernel that TensorFlow has for it, for programs without XLA.

Keras writes the update as a dozen operations, each of which passes over all values of a weight. XLA fuses
them into one loop; without it they took 2.2 of the 5.6 ms of a CNN's step (0.8 million weights, one core),
and the kernel takes 1.4. It computes Keras' formula (Kingma and Ba, arXiv:1412.6980, end of section 2), with
epsilon in the same place. The other rules have few operations, so a kernel of their own would gain little.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf


def use_kernel(optimizer: Any) -> bool:
    """Make a Keras Adam or AdamW update its variables with TensorFlow's kernel; AdamW's decay stays Keras'.

    Returns whether the optimizer is one of these; any other is left unchanged.
    """
    if not isinstance(optimizer, keras.optimizers.Adam):
        return False

    def update_step(gradient: Any, variable: tf.Variable, learning_rate: Any) -> None:
        def number(value: Any) -> Any:
            return tf.cast(value, variable.dtype)

        index = optimizer._get_variable_index(variable)
        step = number(optimizer.iterations.value + 1)
        beta_1, beta_2 = number(optimizer.beta_1), number(optimizer.beta_2)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=optimizer._momentums[index].value.handle,
            v=optimizer._velocities[index].value.handle,
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
