"""XLA's compiler options for a training on a CPU. They change results by rounding at most.

An option that the installed JAX does not have is left out, because it would fail every compilation.
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

WIDE_VECTORS = {"xla_cpu_prefer_vector_width": "512"}
"""For processors with AVX-512, where XLA's default is vectors of 256 bits: 5 % off the step of a simple
recurrent network, 2 % off that of an LSTM."""
XLA_MATMUL = {"xla_cpu_experimental_ynn_fusion_type": "", "xla_cpu_multi_thread_eigen": False}
"""XLA generates its own loops for matrix products instead of calling a library, which first repacks the
factors: 16 % off the step of a feed-forward network, 18 % off that of a simple recurrent one. Factors of all
sizes need a flag as well, see `adapters.keras.xla_flags`; it has no effect on products by a library."""
MAX_ROWS, MAX_COLUMNS = 512, 400
"""The largest sizes for which `XLA_MATMUL` was measured to be no slower than a library: rows of a batch (512:
0.97, 1024: 1.03) and columns of a kernel (256: 0.92 to 0.98, 384: 0.94 to 1.00, 512: 1.08 to 1.14)."""


def cpu_options(plan: Plan) -> dict[str, object]:
    """The compiler options for a program of the plan."""
    return compiler_options(xla_matmul_is_faster(plan))


def xla_matmul_is_faster(plan: Plan) -> bool:
    """Whether `XLA_MATMUL` is faster for a plan: if all products are small, and belong to dense and simple
    recurrent layers. LSTM, GRU, attention and convolutions take 1.05 to 1.5 times as long with it; embeddings
    were not measured."""
    nodes = plan.network.layers()
    kernels = [
        (node.layer, param.shape) for node in nodes for _, param in node.params if len(param.shape) > 1
    ]
    dense = all(isinstance(layer, Dense | SimpleRNN) for layer, _ in kernels)
    # the gradient of an input has as many columns as the kernel has rows; the first layer does not need one
    columns = [shape[-1] for _, shape in kernels] + [shape[0] for _, shape in kernels[1:]]
    small = plan.batch_size <= MAX_ROWS and max(columns, default=0) <= MAX_COLUMNS
    return dense and small and plan.precision != "bf16"


def compiler_options(xla_matmul: bool) -> dict[str, object]:
    """The options for this processor, and `XLA_MATMUL` if requested and XLA has its flag, which is set for
    one thread only. Options that the user has set by a flag are left alone."""
    flags = os.environ.get("XLA_FLAGS", "")
    options: dict[str, object] = {}
    set_by_user = any(name in flags for name in WIDE_VECTORS)
    if "avx512f" in host.instructions() and not set_by_user and _supported(WIDE_VECTORS):
        options |= WIDE_VECTORS
    if xla_matmul and XLA_FLAGS["jax"] in flags and _supported(XLA_MATMUL):
        options |= XLA_MATMUL
    return options


def _supported(options: Mapping[str, object]) -> bool:
    return _compiles(tuple(options.items()))


@cache
def _compiles(items: tuple[tuple[str, object], ...]) -> bool:
    """Whether the installed JAX compiles with these options."""
    try:
        jax.jit(lambda number: number + 1, compiler_options=dict(items))(np.float32(0))
    except jax.errors.JaxRuntimeError:
        return False
    return True
