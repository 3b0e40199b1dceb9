"""The processor's matrix limit, as `evenbench doctor` measures it: `python -m tests.bench.matrix_limit`.

In a process of its own with one thread, by torch, whose products are no slower than the other frameworks'.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from harness import gauge
from harness.shell.engines.process import WorkerKey
from tests.bench.contest import ROOT, Side, prepared


def limit_gflops(folder: Path) -> float:
    """The highest rate that one thread multiplies matrices at, float32, in GFLOP/s; takes some seconds."""
    key: WorkerKey = prepared(Side("torch", "eager"), folder).worker
    command = [sys.executable, "-m", "tests.bench.matrix_limit"]
    done = subprocess.run(
        command, cwd=ROOT, env=key.environment(), capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def main() -> None:
    """Measure and print."""
    from adapters.torch import adapter
    from harness.adapter import AdapterOptions

    made = adapter(AdapterOptions("torch", "float32", threads=1, device="cpu"))
    print(gauge.peak(made.multiply).gflops)


if __name__ == "__main__":
    main()
