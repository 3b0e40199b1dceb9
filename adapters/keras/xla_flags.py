"""Environment variables that Keras and its backend read at import: backend, device, and flags of XLA.

Neither Keras nor a backend may be imported here.
"""

from __future__ import annotations

import os
import sys

from harness.core.adapter import AdapterOptions

# For one CPU thread. On TensorFlow, XLA calls multi-threaded matrix products even with a single thread: a
# transformer's step took 1.03 (28 steps) to 1.12 (8 steps) times as long, an RNN's 1.04. For JAX see
# `adapters.keras.backends.jax.xla_options`, which cannot be imported this early. Its tiles of 4 x 4 x a
# vector are as fast as XLA's larger default tiles, and compile faster (28 steps of an RNN: 1.2 s instead of
# 2.7 s).
XLA_FLAGS = {
    "tensorflow": "--xla_cpu_multi_thread_eigen=false",
    "jax": "--xla_backend_extra_options=xla_force_enable_experimental_llvm_ir_gemm,"
    "xla_llvm_ir_gemm_tile_size=4:4:1*vectwidth",
}
MATMUL_OPTIONS = (
    "xla_backend_extra_options",
    "xla_cpu_multi_thread_eigen",
    "xla_cpu_experimental_ynn_fusion_type",
)  # options that select how XLA computes matrix products


def before_import(options: AdapterOptions) -> None:
    """Set the environment variables that Keras and its backend read at import; does nothing after it."""
    if "keras" in sys.modules:
        return
    os.environ["KERAS_BACKEND"] = options.backend
    os.environ["KERAS_TORCH_DEVICE"] = options.device
    os.environ["JAX_PLATFORMS"] = options.device
    if options.threads == 1 and options.device == "cpu" and options.backend in XLA_FLAGS:
        os.environ["XLA_FLAGS"] = xla_flags(options.backend, os.environ.get("XLA_FLAGS", ""))


def xla_flags(backend: str, user_flags: str) -> str:
    """The adapter's flags followed by the user's `XLA_FLAGS`; the user's alone if they are a file name or
    select themselves how XLA computes matrix products."""
    is_file = user_flags.strip() and not user_flags.lstrip().startswith("-")
    if is_file or any(name in user_flags for name in MATMUL_OPTIONS):
        return user_flags
    return " ".join(filter(None, (XLA_FLAGS[backend], user_flags)))
