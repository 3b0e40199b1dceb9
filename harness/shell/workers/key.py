"""What is fixed for the lifetime of a worker."""

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
    """What is fixed for a worker's life; runs with equal keys can share one."""

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
        """A framework's worker on a device, for runs of an execution or for none in particular."""
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
        """The child's environment variables."""
        threads = {name: str(self.threads) for name in THREAD_VARIABLES}
        quiet = {"TF_CPP_MIN_LOG_LEVEL": "2", "PYTHONUNBUFFERED": "1"}
        wide = {"JAX_ENABLE_X64": "1"} if self.precision == "float64" else {}
        seen = devices.worker_environment(self.device)
        return {**os.environ, **quiet, **threads, **wide, **seen, **dict(self.env)}


def interpreter(framework: FrameworkConfig) -> str:
    """The Python that a framework's workers run in: `framework.python`, or the shell's own."""
    return framework.python or sys.executable
