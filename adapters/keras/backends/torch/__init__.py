"""Keras on torch: an eager loop with torch's autograd, without the overhead of Keras' global state."""
