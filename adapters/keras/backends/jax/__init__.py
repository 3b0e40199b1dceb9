"""Keras on JAX: jitted steps and epochs, XLA options, and layers with gradients tuned for XLA on a CPU."""
