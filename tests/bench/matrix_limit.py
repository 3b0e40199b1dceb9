"""The processor's matrix limit, measured in turns with trainings: `python -m tests.bench.matrix_limit
SECONDS`.

It runs in turns like a side of a comparison, in its own process with one thread, by torch, whose products are
as fast as the other frameworks'. The matrices have the size with which `evenbench doctor` measures the limit
on this machine. A turn's limit is the highest rate during SECONDS.
"""

from __future__ import annotations

import sys

from adapters.torch import adapter
from harness.core.adapter import AdapterOptions
from harness.core.machine import matmul
from tests.bench.turns import Turns

FEWEST = 3  # products


def main(turn_s: float) -> None:
    """Report the limit of each turn in GFLOP/s."""
    turns = Turns()
    multiply = adapter(AdapterOptions("torch", "float32", threads=1, device="cpu")).multiply
    size = 0
    for turn in turns:
        size = size or matmul.measure_peak(multiply).size
        taken = multiply(size, FEWEST)
        while (left_s := turn_s - sum(taken)) > 0:
            taken += multiply(size, max(1, int(left_s / min(taken))))
        turn.rate(2 * size**3 / min(taken) / 1e9)


if __name__ == "__main__":
    main(float(sys.argv[1]))
