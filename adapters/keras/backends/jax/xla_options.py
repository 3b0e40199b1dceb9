"""What XLA is told when it compiles a training for a CPU. Nothing here changes a number beyond its rounding.

An option that this JAX does not know is left out, since it would end every compilation.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache

import jax
import numpy as np

from adapters.keras.xla_flags import XLA_FLAGS
from harness.core.adapter import Plan
from harness.core.machine import host
from harness.core.network import Dense, SimpleRNN

WIDE = {"xla_cpu_prefer_vector_width": "512"}
"""On processors with AVX-512, where XLA would take vectors of 256 bits: 5 % off the step of a simple
recurrent network, 2 % off that of an LSTM."""
OWN_PRODUCTS = {"xla_cpu_experimental_ynn_fusion_type": "", "xla_cpu_multi_thread_eigen": False}
"""XLA makes loops of its own for matrix products, and calls no library, which lays the factors out first:
16 % off the step of a feed-forward network, 18 % off that of a simple recurrent one. For factors of all sizes
it does so by a flag, see `adapters.keras`, which says nothing where a library multiplies."""
MOST_ROWS, MOST_COLUMNS = 512, 400
"""Up to where `OWN_PRODUCTS` were found to be no slower than a library: rows of a batch (512: 0.97, 1024:
1.03) and columns of a kernel (256: 0.92 to 0.98, 384: 0.94 to 1.00, 512: 1.08 to 1.14)."""


def cpu_options(plan: Plan) -> dict[str, object]:
    """The options for a program of the plan."""
    return options(own_products_pay(plan))


def own_products_pay(plan: Plan) -> bool:
    """Whether `OWN_PRODUCTS` are the faster ones: all products are small, and those of dense and simple
    recurrent layers. LSTM, GRU, attention and convolutions take 1.05 to 1.5 times as long by them; embeddings
    were not tried."""
    nodes = plan.network.layers()
    kernels = [
        (node.layer, param.shape) for node in nodes for _, param in node.params if len(param.shape) > 1
    ]
    dense = all(isinstance(layer, Dense | SimpleRNN) for layer, _ in kernels)
    # the gradient of an input has as many columns as the kernel has rows; the first layer's is not needed
    columns = [shape[-1] for _, shape in kernels] + [shape[0] for _, shape in kernels[1:]]
    small = plan.batch_size <= MOST_ROWS and max(columns, default=0) <= MOST_COLUMNS
    return dense and small and plan.precision != "bf16"


def options(own_products: bool) -> dict[str, object]:
    """Those of the processor, and `OWN_PRODUCTS` where they are asked for and XLA was told so by its flags,
    which it is for one thread. What a user gave as a flag is left to him."""
    flags = os.environ.get("XLA_FLAGS", "")
    found: dict[str, object] = {}
    if "avx512f" in host.instructions() and not any(name in flags for name in WIDE) and _known(WIDE):
        found |= WIDE
    if own_products and XLA_FLAGS["jax"] in flags and _known(OWN_PRODUCTS):
        found |= OWN_PRODUCTS
    return found


def _known(told: Mapping[str, object]) -> bool:
    return _compiles(tuple(told.items()))


@cache
def _compiles(items: tuple[tuple[str, object], ...]) -> bool:
    """Whether this JAX can be told so."""
    try:
        jax.jit(lambda number: number + 1, compiler_options=dict(items))(np.float32(0))
    except jax.errors.JaxRuntimeError:
        return False
    return True
