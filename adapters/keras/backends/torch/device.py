"""torch in this process: its configuration, version and devices, memory peak, and matrix product."""

from __future__ import annotations

from collections.abc import Callable

import torch

from adapters.keras.backends.torch import thread_state
from harness.core.adapter import AdapterOptions, factors
from harness.core.machine import precision
from harness.core.validation import ConfigError, Mistake


def configure(options: AdapterOptions) -> None:
    """Set the threads and the precision of a GPU; Keras reads its device from the environment.

    Raises ConfigError for a precision or device that torch does not have in this process.
    """
    torch.set_num_threads(options.threads)
    thread_state.set_defaults()
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError([Mistake("device", f"{options.device!r} requested, but torch sees no GPU")])
    capability = torch.cuda.get_device_capability() if options.device == "cuda" else None
    if refused := precision.mistakes(options.precision, options.device, capability):
        raise ConfigError(refused)
    # torch's default allows TF32 for convolutions and recurrent layers but not for matrix products
    torch.set_float32_matmul_precision("high" if options.precision == "tf32" else "highest")
    torch.backends.cuda.matmul.allow_tf32 = options.precision == "tf32"
    torch.backends.cudnn.allow_tf32 = options.precision == "tf32"


def environment(options: AdapterOptions) -> dict[str, object]:
    """Versions, threads, devices, and whether products on a GPU may use TF32."""
    cuda = options.device == "cuda"
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "inter_op_threads": torch.get_num_interop_threads(),
        "devices": [torch.cuda.get_device_name(0)] if cuda else ["cpu"],
        "tf32": torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32,
        **({"cuda": torch.version.cuda, "cudnn": _cudnn()} if cuda else {}),
    }


def _cudnn() -> int | None:
    version: int | None = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    return version


def start_device_peak(options: AdapterOptions) -> bool:
    """Start a new peak of the caching allocator; it counts the memory of tensors."""
    if options.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    return True


def device_peak_mb(options: AdapterOptions) -> float | None:
    """The peak memory of tensors, without the allocator's reserve; None on a CPU."""
    return torch.cuda.max_memory_allocated() / 1e6 if options.device == "cuda" else None


def product(size: int, options: AdapterOptions) -> Callable[[], None]:
    """A function that multiplies two matrices, `[size, size]`, and returns once the product is computed."""
    device, dtype = torch.device(options.device), getattr(torch, factors(options.precision))
    left, right, result = torch.rand(3, size, size, dtype=dtype, device=device)

    def multiply() -> None:
        torch.mm(left, right, out=result)
        wait(device)

    return multiply


def wait(device: torch.device) -> None:
    """Wait for the device; a CPU computes synchronously."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
