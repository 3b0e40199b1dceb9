"""PyTorch as an adapter: devices, precision and threads of the process, and the plans that it can run."""

from __future__ import annotations

import torch

from adapters.torch import recurrent
from adapters.torch.program import TorchProgram
from harness.core.adapter import Adapter, AdapterOptions, Execution, Plan, Precision, Program, factors
from harness.core.machine import matmul, precision
from harness.core.validation import ConfigError, Mistake

EXECUTIONS: dict[str, tuple[Execution, ...]] = {
    "cpu": ("idiomatic", "eager", "compiled"),
    "cuda": ("idiomatic", "eager", "compiled", "epoch"),
}


def adapter(options: AdapterOptions) -> Adapter:
    """Set up PyTorch in this process, with the requested number of threads.

    Raises ConfigError if torch does not see the device.
    """
    device = torch.device(options.device)
    devices = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    if f"{device.type}:{device.index or 0}" not in devices and device.type != "cpu":
        problem = f"torch {torch.__version__} does not see {options.device!r} here"
        raise ConfigError([Mistake("device", problem, ", ".join(devices))])
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    if mistakes := precision.mistakes(options.precision, options.device, capability):
        raise ConfigError(mistakes)
    set_tf32(options.precision)
    torch.set_num_threads(options.threads)
    if torch.get_num_interop_threads() != options.threads:
        torch.set_num_interop_threads(options.threads)
    return TorchAdapter(options)


def set_tf32(precision: Precision) -> None:
    """Let a GPU round the factors of float32 products only in the precision `tf32`.

    torch's default is to round in convolutions and recurrent layers, but not in matrix products. The first
    setting applies to CPU kernels too.
    """
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"


class TorchAdapter:
    """See `harness.core.adapter.Adapter`."""

    def __init__(self, options: AdapterOptions) -> None:
        self._device = torch.device(options.device)
        self._precision = options.precision

    def executions(self) -> tuple[Execution, ...]:
        """Return the executions of the device; `epoch` needs a GPU, see `cuda_graphs`."""
        return EXECUTIONS[self._device.type]

    def environment(self) -> dict[str, object]:
        """Describe torch's version and settings and the device."""
        on_cuda = self._device.type == "cuda"
        description: dict[str, object] = {
            "torch": torch.__version__,
            "device": str(self._device),
            "devices": [torch.cuda.get_device_name(self._device)] if on_cuda else ["cpu"],
            "threads": torch.get_num_threads(),
            "interop_threads": torch.get_num_interop_threads(),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "mkl": torch.backends.mkl.is_available(),  # type: ignore[no-untyped-call]
            "mkldnn": torch.backends.mkldnn.is_available(),  # type: ignore[no-untyped-call]
            "float32_matmul_precision": torch.get_float32_matmul_precision(),
            "tf32": torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32,
        }
        if on_cuda:
            description |= {
                "device_name": torch.cuda.get_device_name(self._device),
                "cuda": torch.version.cuda,
                "cuda_driver": torch._C._cuda_getDriverVersion(),  # type: ignore[attr-defined]
                "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
            }
        return description

    def build(self, plan: Plan) -> Program:
        """Build the program of a plan; raises ConfigError for a plan that torch cannot run."""
        mistakes = []
        if plan.execution not in self.executions():
            problem = f"torch on {self._device.type} has no execution {plan.execution!r}"
            mistakes.append(Mistake("execution", problem, ", ".join(self.executions())))
        if plan.xla:
            mistakes.append(Mistake("framework.xla", "torch does not compile with XLA", "false"))
        steps = recurrent.steps(plan.network)
        if plan.execution == "compiled" and steps > recurrent.UNROLLED_STEPS:
            problem = f"torch.compile unrolls recurrent layers, and {steps} steps take minutes to compile"
            allowed = (
                f"idiomatic, eager, or at most {recurrent.UNROLLED_STEPS} steps in all layers and directions"
            )
            mistakes.append(Mistake("execution", problem, allowed))
        if mistakes:
            raise ConfigError(mistakes)
        return TorchProgram(plan)

    def multiply(self, size: int, repeats: int) -> list[float]:
        """Time `torch.mm` into an existing result."""
        dtype: torch.dtype = getattr(torch, factors(self._precision))
        left, right, product = torch.rand(3, size, size, dtype=dtype, device=self._device)

        def multiply() -> None:
            torch.mm(left, right, out=product)
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)

        return matmul.time_calls(multiply, repeats)

    def start_device_peak(self) -> bool:
        """Reset the peak of the caching allocator, which counts the memory of tensors."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        return True

    def device_peak_mb(self) -> float | None:
        """Return the peak memory of tensors, without the allocator's unused reserve."""
        on_cuda = self._device.type == "cuda"
        return torch.cuda.max_memory_allocated(self._device) / 1e6 if on_cuda else None
