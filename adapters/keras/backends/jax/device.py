"""JAX in this process: its configuration, versions and devices, memory peak, and matrix product."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Callable

import jax

from harness.core.adapter import AdapterOptions, factors
from harness.core.machine import precision
from harness.core.validation import ConfigError, Mistake

ASYNC = "jax_cpu_enable_async_dispatch"
"""JAX's option to compute calls on a CPU in another thread (the default) instead of the calling one, so that
steps are prepared during the previous one on a second core. A whole epoch as one call gains nothing from it,
and waits for two threads to wake each other. JAX does not read it from the environment; `configure` does, by
this name in capitals."""
MATMUL_PRECISION = {"float32": "highest", "tf32": "tensorfloat32"}  # JAX's names of the precisions on a GPU


def configure(options: AdapterOptions) -> None:
    """Check the platform and precision that JAX read from the environment at import; set `ASYNC`.

    Raises ConfigError for a precision or device that JAX does not have in this process.
    """
    if value := os.environ.get(ASYNC.upper(), "").lower():
        jax.config.update(ASYNC, value not in ("0", "false"))  # type: ignore[no-untyped-call]
    wide = jax.config.values["jax_enable_x64"]
    if wide != (options.precision == "float64"):
        needed = "1" if options.precision == "float64" else "0"
        problem = f"{options.precision} on JAX needs JAX_ENABLE_X64={needed} before JAX is imported"
        raise ConfigError([Mistake("precision", problem)])
    platform = jax.default_backend()
    if platform != ("gpu" if options.device == "cuda" else "cpu"):
        raise ConfigError([Mistake("device", f"{options.device!r} requested, but JAX runs on {platform!r}")])
    if options.device == "cpu":
        if refused := precision.mistakes(options.precision, options.device):
            raise ConfigError(refused)
        return
    major, _, minor = str(jax.devices()[0].compute_capability).partition(".")
    if refused := precision.mistakes(options.precision, options.device, (int(major), int(minor or 0))):
        raise ConfigError(refused)
    matmul_precision = MATMUL_PRECISION.get(options.precision)
    if matmul_precision is not None:  # by default XLA uses TF32 for float32 on a GPU that has it
        jax.config.update("jax_default_matmul_precision", matmul_precision)  # type: ignore[no-untyped-call]


def environment(options: AdapterOptions) -> dict[str, object]:
    """Versions, devices and settings as JAX reports them. XLA does not report its threads."""
    return {
        "jax": jax.__version__,
        "jaxlib": importlib.metadata.version("jaxlib"),
        "devices": [device.device_kind for device in jax.devices()],
        "cpu_devices": jax.device_count(),
        "async_dispatch": jax.config.read(ASYNC),  # type: ignore[no-untyped-call]
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "tf32": jax.config.values["jax_default_matmul_precision"] == MATMUL_PRECISION["tf32"],
    }


def start_device_peak(options: AdapterOptions) -> bool:
    """Whether a new peak could be started: on a GPU, JAX has a single peak for the whole process."""
    return options.device == "cpu"


def device_peak_mb(options: AdapterOptions) -> float | None:
    """The peak of arrays and of the programs' temporary memory; None if the device does not count it."""
    stats = None if options.device == "cpu" else jax.devices()[0].memory_stats()
    return float(stats["peak_bytes_in_use"]) / 1e6 if stats else None


def product(size: int, options: AdapterOptions) -> Callable[[], None]:
    """A function that multiplies two matrices, `[size, size]`, and returns once the product is computed."""
    keys = jax.random.split(jax.random.key(0))
    left, right = (jax.random.uniform(key, (size, size), factors(options.precision)) for key in keys)
    compiled = jax.jit(jax.numpy.matmul)
    return lambda: compiled(left, right).block_until_ready()
