"""torch in this process: what is set for it, what it reports, and its matrix product."""

from __future__ import annotations

from collections.abc import Callable

import torch

from adapters.keras.backends.torch import thread_state
from harness.core.adapter import AdapterOptions, factors
from harness.core.machine import precision
from harness.core.validation import ConfigError, Mistake


def configure(options: AdapterOptions) -> None:
    """Set the threads and what a card may round; Keras took its device from the environment."""
    torch.set_num_threads(options.threads)
    thread_state.fill()
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError([Mistake("device", f"{options.device!r} was asked for, torch sees no GPU")])
    capability = torch.cuda.get_device_capability() if options.device == "cuda" else None
    if refused := precision.mistakes(options.precision, options.device, capability):
        raise ConfigError(refused)
    # torch's own default is that convolutions and recurrent layers may round, and matrix products may not
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
    """The caching allocator counts what tensors take."""
    if options.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    return True


def device_peak_mb(options: AdapterOptions) -> float | None:
    """Of tensors; what the allocator keeps in reserve for others is not in it."""
    return torch.cuda.max_memory_allocated() / 1e6 if options.device == "cuda" else None


def product(size: int, options: AdapterOptions) -> Callable[[], None]:
    """A product of two matrices of so many rows, as a function that returns when it is computed."""
    device, dtype = torch.device(options.device), getattr(torch, factors(options.precision))
    left, right, result = torch.rand(3, size, size, dtype=dtype, device=device)

    def multiply() -> None:
        torch.mm(left, right, out=result)
        wait(device)

    return multiply


def wait(device: torch.device) -> None:
    """Block until the device is idle; a CPU computes synchronously."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
