"""JAX in this process: what is set for it, what it reports, and its matrix product."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Callable

import jax

from harness.core.adapter import AdapterOptions, factors
from harness.core.machine import precision
from harness.core.validation import ConfigError, Mistake

ASYNC = "jax_cpu_enable_async_dispatch"
"""What has calls on a CPU computed in the thread that makes them (false), or as JAX has it in another one,
while this one goes on: steps are made ready during the one before, on a second core. A whole epoch as one
call gains nothing from that, and waits for two threads to wake each other. JAX does not read it from the
environment; `configure` does, by this name in capitals."""
PRODUCTS = {"float32": "highest", "tf32": "tensorfloat32"}  # what JAX calls the precisions on a card


def configure(options: AdapterOptions) -> None:
    """Check what JAX read from the environment when it was imported, platform and precision; set `ASYNC`."""
    if asked := os.environ.get(ASYNC.upper(), "").lower():
        jax.config.update(ASYNC, asked not in ("0", "false"))  # type: ignore[no-untyped-call]
    wide = jax.config.values["jax_enable_x64"]
    if wide != (options.precision == "float64"):
        needed = "1" if options.precision == "float64" else "0"
        problem = f"{options.precision} on JAX needs JAX_ENABLE_X64={needed} before JAX is imported"
        raise ConfigError([Mistake("precision", problem)])
    platform = jax.default_backend()
    if platform != ("gpu" if options.device == "cuda" else "cpu"):
        raise ConfigError([Mistake("device", f"{options.device!r} was asked for, JAX runs on {platform!r}")])
    if options.device == "cpu":
        if refused := precision.mistakes(options.precision, options.device):
            raise ConfigError(refused)
        return
    major, _, minor = str(jax.devices()[0].compute_capability).partition(".")
    if refused := precision.mistakes(options.precision, options.device, (int(major), int(minor or 0))):
        raise ConfigError(refused)
    wanted = PRODUCTS.get(options.precision)
    if wanted is not None:  # by default XLA takes TF32 for float32 where a card has it
        jax.config.update("jax_default_matmul_precision", wanted)  # type: ignore[no-untyped-call]


def environment(options: AdapterOptions) -> dict[str, object]:
    """Versions, and the devices that JAX reports. XLA does not report its threads."""
    return {
        "jax": jax.__version__,
        "jaxlib": importlib.metadata.version("jaxlib"),
        "devices": [device.device_kind for device in jax.devices()],
        "cpu_devices": jax.device_count(),
        "async_dispatch": jax.config.read(ASYNC),  # type: ignore[no-untyped-call]
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "tf32": jax.config.values["jax_default_matmul_precision"] == PRODUCTS["tf32"],
    }


def start_device_peak(options: AdapterOptions) -> bool:
    """JAX has one peak, the process'."""
    return options.device == "cpu"


def device_peak_mb(options: AdapterOptions) -> float | None:
    """Of arrays and what programs need beside them; None where the device keeps no count."""
    stats = None if options.device == "cpu" else jax.devices()[0].memory_stats()
    return float(stats["peak_bytes_in_use"]) / 1e6 if stats else None


def product(size: int, options: AdapterOptions) -> Callable[[], None]:
    """A product of two matrices of so many rows, as a function that returns when it is computed."""
    keys = jax.random.split(jax.random.key(0))
    left, right = (jax.random.uniform(key, (size, size), factors(options.precision)) for key in keys)
    compiled = jax.jit(jax.numpy.matmul)
    return lambda: compiled(left, right).block_until_ready()
