"""XLA's flags."""

from __future__ import annotations

import os
import sys

from harness.core.adapter import AdapterOptions

# For one thread of a CPU. On TensorFlow XLA calls products that are shared among threads even if there is but
# one: a transformer's step took 1.03 (28 steps) to 1.12 (8 steps) times as long, an RNN's 1.04. For JAX see
# `jax_options`, which can't be imported this early; its blocks of 4 x 4 x a vector are as fast as the larger
# ones that XLA has by default, and compiled in a third of the time (28 steps of an RNN: 1.2 s for 2.7).
XLA_FLAGS = {
    "tensorflow": "--xla_cpu_multi_thread_eigen=false",
    "jax": "--xla_backend_extra_options=xla_force_enable_experimental_llvm_ir_gemm,"
    "xla_llvm_ir_gemm_tile_size=4:4:1*vectwidth",
}
XLA_PRODUCTS = (
    "xla_backend_extra_options",
    "xla_cpu_multi_thread_eigen",
    "xla_cpu_experimental_ynn_fusion_type",
)  # options that say how matrices are multiplied


def before_import(options: AdapterOptions) -> None:
    """What Keras and its backends read from the environment while they are imported."""
    if "keras" in sys.modules:
        return
    os.environ["KERAS_BACKEND"] = options.backend
    os.environ["KERAS_TORCH_DEVICE"] = options.device
    os.environ["JAX_PLATFORMS"] = options.device
    if options.threads == 1 and options.device == "cpu" and options.backend in XLA_FLAGS:
        os.environ["XLA_FLAGS"] = xla_flags(options.backend, os.environ.get("XLA_FLAGS", ""))


def xla_flags(backend: str, given: str) -> str:
    """What a user gave as XLA_FLAGS, with ours before it; as it is where it is a file, or says itself how
    matrices are multiplied."""
    is_file = given.strip() and not given.lstrip().startswith("-")
    if is_file or any(name in given for name in XLA_PRODUCTS):
        return given
    return " ".join(filter(None, (XLA_FLAGS[backend], given)))
