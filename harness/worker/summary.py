"""The timing and the metrics of a finished training, computed from the raw values of its epochs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from harness.core.config.run_config import RunConfig
from harness.core.machine import statistics, timing
from harness.core.runs.run_folder import Job
from harness.worker.training_setup import TrainingSetup

Epochs = Sequence[Mapping[str, Any]]


def timing_summary(
    setup: TrainingSetup,
    job: Job,
    epochs: Epochs,
    resumed_epochs: int,
    measured: Mapping[str, Any],
    peak_is_of_run: bool,
) -> dict[str, Any]:
    """Compile and training time, quartiles of the step time, and what disturbed them.

    `measured` has the `first_epoch_s` of a new program and the `steal`; `resumed_epochs` of the epochs were
    trained by an earlier attempt.
    """
    epoch_s = [epoch["train_s"] for epoch in epochs]
    first_s = measured.get("first_epoch_s")
    # the first epoch of a program compiles and trains; a later one shows how much of it is training
    later_s = statistics.median(epoch_s[resumed_epochs:] or epoch_s)
    step_ms = [1000 * value / setup.plan.steps for value in epoch_s]
    return {
        "compile_s": 0.0 if first_s is None else max(0.0, first_s - later_s),
        "train_s": sum(epoch_s),
        "step_ms_quartiles": list(statistics.quartiles(step_ms)),
        "disturbed": timing.disturbances(
            sum(epoch_s),
            sum(epoch["cpu_s"] for epoch in epochs),
            measured["steal"],
            computes=setup.plan.device == "cpu",
            concurrent_runs=job.beside,
        ),
        "peak_memory_of": "run" if peak_is_of_run else "worker",
    }


def speed_metrics(
    setup: TrainingSetup, job: Job, epochs: Epochs, measured: Mapping[str, Any]
) -> dict[str, float]:
    """The metrics of speed, time, memory and energy; `measured` has `import_s` and the timing summary."""
    epoch_s = [epoch["train_s"] for epoch in epochs]
    batch_size = setup.plan.batch_size
    step_s = statistics.median(epoch_s) / setup.plan.steps
    values = {
        "speed/step_ms": 1000 * step_s,
        "speed/samples_per_second": batch_size / step_s,
        "speed/gflops": 3 * setup.plan.network.flops() * batch_size / step_s / 1e9,
        "time/import_s": measured["import_s"],
        "time/compile_s": measured["compile_s"],
        "time/train_s": measured["train_s"],
        "memory/peak_mb": timing.peak_memory_mb(),
    }
    if job.limit_gflops is not None:
        values["speed/share_of_limit"] = values["speed/gflops"] / job.limit_gflops
    values |= _time_to_target(setup.config, epochs)
    if all("energy_j" in epoch for epoch in epochs):
        values["energy/train_j"] = sum(epoch["energy_j"] for epoch in epochs)
    return values


def _time_to_target(config: RunConfig, epochs: Epochs) -> dict[str, float]:
    """The training time until the first epoch that reaches the target; empty if none does or none is set."""
    target = config.train.target
    if target is None:
        return {}
    falling = target.metric in ("val/loss", "val/mse", "val/mae")
    train_s = 0.0
    for epoch in epochs:
        train_s += epoch["train_s"]
        value = epoch["metrics"].get(target.metric, math.nan)
        if value <= target.value if falling else value >= target.value:
            return {"time/to_target_s": train_s}
    return {}
