"""Keras on TensorFlow: compiled steps and epochs as `tf.function`s, and TensorFlow's own kernel for Adam."""
