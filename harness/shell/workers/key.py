"""The key of a worker: what is fixed for its lifetime, and so decides which runs can share it."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass

from harness.core.config.run_config import FrameworkConfig, RunConfig
from harness.shell.environment import devices

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "TF_NUM_INTRAOP_THREADS",
    "TF_NUM_INTEROP_THREADS",
    "NPROC",  # sizes XLA's pool on the CPU
)


@dataclass(frozen=True)
class WorkerKey:
    """What is fixed for a worker's lifetime; runs with equal keys can share a worker."""

    framework: str
    adapter: str
    backend: str
    python: str
    env: tuple[tuple[str, str], ...]
    precision: str
    threads: int
    device: str

    @classmethod
    def of(cls, config: RunConfig) -> WorkerKey:
        """The worker that a run needs."""
        return cls.on(config.framework, config.device, config.precision, config.threads, config.execution)

    @classmethod
    def on(
        cls, framework: FrameworkConfig, device: str, precision: str, threads: int, execution: str = ""
    ) -> WorkerKey:
        """The worker of a framework on a device; `execution` matters if it needs environment variables."""
        return cls(
            framework.name,
            framework.adapter,
            framework.backend,
            interpreter(framework),
            tuple(sorted(framework.environment(execution).items())),
            precision,
            threads,
            device,
        )

    def environment(self) -> dict[str, str]:
        """The environment variables of the worker process."""
        threads = {name: str(self.threads) for name in THREAD_VARIABLES}
        output = {"TF_CPP_MIN_LOG_LEVEL": "2", "PYTHONUNBUFFERED": "1"}
        float64 = {"JAX_ENABLE_X64": "1"} if self.precision == "float64" else {}
        device = devices.worker_environment(self.device)
        return {**os.environ, **output, **threads, **float64, **device, **dict(self.env)}


def interpreter(framework: FrameworkConfig) -> str:
    """The Python interpreter of a framework's workers: `framework.python`, or the shell's own."""
    return framework.python or sys.executable
