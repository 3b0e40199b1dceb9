"""TensorFlow in this process: its configuration, version and devices, memory peak, and matrix product."""

from __future__ import annotations

import os
from collections.abc import Callable

import tensorflow as tf

from harness.core.adapter import AdapterOptions, factors
from harness.core.machine import precision
from harness.core.validation import ConfigError, Mistake


def configure(options: AdapterOptions) -> None:
    """Set threads and device, which TensorFlow fixes when it first runs an operation.

    Raises ConfigError for a precision or device that TensorFlow does not have in this process.
    """
    tf.config.threading.set_intra_op_parallelism_threads(options.threads)
    tf.config.threading.set_inter_op_parallelism_threads(options.threads)
    tf.config.experimental.enable_tensor_float_32_execution(options.precision == "tf32")
    if options.device == "cpu":
        if refused := precision.mistakes(options.precision, options.device):
            raise ConfigError(refused)
        tf.config.set_visible_devices([], "GPU")
        return
    cards = tf.config.list_physical_devices("GPU")
    if not cards:
        raise ConfigError([Mistake("device", f"{options.device!r} requested, but TensorFlow sees no GPU")])
    for card in cards:  # otherwise TensorFlow allocates all of the GPU's memory at once
        tf.config.experimental.set_memory_growth(card, True)
    capability = tf.config.experimental.get_device_details(cards[0]).get("compute_capability")
    if refused := precision.mistakes(options.precision, options.device, capability):
        raise ConfigError(refused)


def environment(options: AdapterOptions) -> dict[str, object]:
    """Version, threads, devices, and whether matrix products on a GPU may use TF32."""
    built_with, on_gpu = tf.sysconfig.get_build_info(), options.device != "cpu"
    return {
        "tensorflow": tf.__version__,
        "intra_op_threads": tf.config.threading.get_intra_op_parallelism_threads(),
        "inter_op_threads": tf.config.threading.get_inter_op_parallelism_threads(),
        "devices": [device.name for device in tf.config.get_visible_devices()],
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "tf32": tf.config.experimental.tensor_float_32_execution_enabled(),
        **({"cuda": built_with["cuda_version"], "cudnn": built_with["cudnn_version"]} if on_gpu else {}),
    }


def start_device_peak(options: AdapterOptions) -> bool:
    """Start a new peak of TensorFlow's allocator; it counts the memory of tensors."""
    if options.device != "cpu":
        tf.config.experimental.reset_memory_stats("GPU:0")
    return True


def device_peak_mb(options: AdapterOptions) -> float | None:
    """The peak memory of tensors, without the allocator's reserve; None on a CPU."""
    if options.device == "cpu":
        return None
    return float(tf.config.experimental.get_memory_info("GPU:0")["peak"]) / 1e6


def product(size: int, options: AdapterOptions) -> Callable[[], None]:
    """A function that multiplies two matrices, `[size, size]`, and returns once the product is computed."""
    left, right = (tf.random.uniform((size, size), dtype=factors(options.precision)) for _ in range(2))
    on_gpu = options.device != "cpu"

    def multiply() -> None:
        tf.matmul(left, right)
        if on_gpu:
            tf.test.experimental.sync_devices()

    return multiply
