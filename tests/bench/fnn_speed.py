"""Speed of the same network in every execution: from Keras' `fit` to a whole epoch as one program.

    python -m tests.bench.fnn_speed [--json] [--seconds 40]

All run in turns, one epoch each, in separate processes with one thread: evenbench's executions as its workers
run them, and plain Keras `fit` (one call for all epochs, tests/bench/bare_fit.py). Ratios are of paired
epochs to `fit` on TensorFlow.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from harness.core.machine import statistics
from tests.bench.comparison import Side, bare, measure_in_turns, train_s
from tests.bench.overhead import interval
from tests.bench.report import Report, Table, command, plain

GOAL = 10.0
FIT = bare("keras", "idiomatic")
SIDES = {
    "Keras fit, TensorFlow": FIT,
    "Keras fit, JAX": bare("keras_jax", "idiomatic"),
    "keras compiled, XLA": Side("keras", "compiled"),
    "keras epoch": Side("keras", "epoch", settings=("framework.xla=false",)),
    "keras epoch, XLA": Side("keras", "epoch"),
    "keras_jax compiled": Side("keras_jax", "compiled"),
    "keras_jax epoch": Side("keras_jax", "epoch"),
    "torch idiomatic": Side("torch", "idiomatic"),
    "torch eager, fused Adam": Side("torch", "eager"),
    "torch compiled": Side("torch", "compiled"),
}


def measure_speed(seconds: float = 40.0) -> Report:
    """Measure all executions in one comparison."""
    with tempfile.TemporaryDirectory(prefix="fnn-speed-") as name:
        result = measure_in_turns(list(SIDES.values()), Path(name, "contest"), seconds)
    all_epochs, steps = result.epochs, result.steps
    fit = train_s(all_epochs[0])
    jax = train_s(all_epochs[1])
    rows, values = [], []
    for label, epochs in zip(SIDES, all_epochs, strict=True):
        times = train_s(epochs)
        low, middle, high = (1e6 * value / steps for value in statistics.quartiles(times))
        faster, than_jax = statistics.ratio(fit, times), statistics.ratio(jax, times)
        rows.append(
            (label, f"{middle:.1f}", f"{low:.1f} to {high:.1f}", interval(faster), f"{than_jax.estimate:.2f}")
        )
        values.append({"way": label, "step_us": middle, "quartiles_us": [low, high], "faster": plain(faster)})
    columns = ("", "µs/step", "quartiles", "times as fast as fit on TensorFlow [95 %]", "as fit on JAX")
    title = f"FNN 64-64-32-10 on digits, batch 32, Adam, one thread, {len(fit)} epochs each"
    return Report({"goal": GOAL, "ways": values}, (Table(title, columns, tuple(rows)),))


if __name__ == "__main__":
    description = "Keras' fit compared with a whole epoch as one program, and the executions in between."
    sys.exit(command(measure_speed, description, seconds=40.0))
