"""What XLA is told when it compiles a training for a CPU. Nothing here changes a number beyond its rounding.

An option that this JAX does not know is left out, since it would end every compilation.
"""

from __future__ import annotations

from functools import cache

import jax
import numpy as np

from harness import machine
from harness.adapter import Plan
from harness.spec import Dense, SimpleRNN

WIDE = {"xla_cpu_prefer_vector_width": "512"}
"""On processors with AVX-512, where XLA would take vectors of 256 bits: 5 % off the step of a simple
recurrent network, 2 % off that of an LSTM."""
OWN_PRODUCTS = {"xla_cpu_experimental_ynn_fusion_type": "", "xla_cpu_multi_thread_eigen": False}
"""XLA makes loops of its own for matrix products, and calls no library, which lays the factors out first:
16 % off the step of a feed-forward network, 18 % off that of a simple recurrent one. For factors of all sizes
it does so by a flag, see `adapters.keras`, which says nothing where programs are compiled without these."""
MOST_ROWS, MOST_COLUMNS = 512, 400
"""Up to where `OWN_PRODUCTS` were found to be no slower than a library: rows of a batch (512: 0.97, 1024:
1.03) and columns of a kernel (256: 0.92 to 0.98, 384: 0.94 to 1.00, 512: 1.08 to 1.14)."""


def cpu_options(plan: Plan, threads: int) -> dict[str, object]:
    """The options for a program of the plan on so many threads."""
    return options(threads == 1 and narrow(plan))


def narrow(plan: Plan) -> bool:
    """Whether `OWN_PRODUCTS` are the faster ones: all products are small, and those of dense and simple
    recurrent layers. LSTM, GRU, attention and convolutions take 1.05 to 1.5 times as long by them."""
    nodes = plan.network.layers()
    kernels = [
        (node.layer, param.shape) for node in nodes for _, param in node.params if len(param.shape) > 1
    ]
    small = all(isinstance(of, Dense | SimpleRNN) and shape[-1] <= MOST_COLUMNS for of, shape in kernels)
    return small and plan.batch_size <= MOST_ROWS and plan.precision != "bf16"


def options(own_products: bool) -> dict[str, object]:
    """Those of the processor, and `OWN_PRODUCTS` where they are asked for."""
    found: dict[str, object] = {}
    if "avx512f" in machine.instructions() and _known(tuple(WIDE.items())):
        found |= WIDE
    if own_products and _known(tuple(OWN_PRODUCTS.items())):
        found |= OWN_PRODUCTS
    return found


@cache
def _known(items: tuple[tuple[str, str | bool], ...]) -> bool:
    """Whether this JAX can be told so."""
    try:
        jax.jit(lambda number: number + 1, compiler_options=dict(items))(np.float32(0))
    except jax.errors.JaxRuntimeError:
        return False
    return True
