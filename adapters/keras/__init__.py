"""Keras 3, on TensorFlow, JAX or torch: one adapter, whose backend is chosen before Keras is imported.

What concerns every backend (the model, the losses, the optimizers, `fit`) is written once with Keras; only
modules that are named after a backend import it, and only those of the chosen one are imported.
"""

from adapters.keras.adapter import adapter
from adapters.keras.xla_flags import before_import

__all__ = ["adapter", "before_import"]
