"""Keras 3 on TensorFlow, JAX or torch: one adapter, whose backend is fixed before Keras is imported.

`adapter` is the entry point of the harness (`harness.core.adapter`); `before_import` sets the environment
that Keras and its backend read at import. This package itself imports neither.

Modules of this package use Keras only: `model` and the layer modules map a network, `optimizers` and `losses`
the training rule, `fit` runs the idiomatic execution, `program` and `trainer` put them behind the harness's
protocol, and `export` writes `.keras` files. `backends` has one package for each backend, and only that of
the chosen backend is imported.
"""

from adapters.keras.adapter import adapter
from adapters.keras.xla_flags import before_import

__all__ = ["adapter", "before_import"]
