"""One run inside a worker: load, train epoch by epoch with the clock around the training alone, evaluate.

What is timed lies between two readings with a `sync()` before each; orders, learning rates, losses, metrics
and events are made outside of them. A program that is new to this worker trains one epoch that is thrown
away, so that compilation never gets into an epoch that counts.
"""

from __future__ import annotations

import math
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from harness.core.adapter import Epoch, Examples, Plan, Program, Trainer, Weights
from harness.core.config.run_config import METRICS, RunConfig
from harness.core.data.dataset import Dataset, open_dataset
from harness.core.machine import host, statistics, timing
from harness.core.runs import warm_start as start_of
from harness.core.runs.run_folder import CONCLUSIVE, Failure, Job, Result, RunFolder, Status, epoch_record
from harness.core.runs.warm_start import SourceRun
from harness.core.training import metrics, schedules
from harness.core.training.batches import batch_order
from harness.core.training.training_state import State
from harness.core.validation import parse, to_plain
from harness.worker import environment
from harness.worker.checkpoints import Checkpoints
from harness.worker.epochs import Epochs, train_all
from harness.worker.events import Emit
from harness.worker.program_cache import Programs

Record = Callable[[Mapping[str, Any]], dict[str, Any]]
"""Notes an event in the folder and tells the shell; gives it back with its time."""
Judge = Callable[[], bool]
"""Asks the shell whether the run is to go on; it answers each epoch that it is told of."""


class DivergedError(Exception):
    """A loss or an output is not a finite number any more."""


class PrunedError(Exception):
    """The shell wants no more of the run."""


def run(
    folder: RunFolder, programs: Programs, import_s: float, emit: Emit, judge: Judge | None = None
) -> None:
    """Do the run of a folder and leave its result there; every error becomes a recorded failure."""
    job = parse(Job, folder.job())

    def record(event: Mapping[str, Any]) -> dict[str, Any]:
        stamped = dict(event)  # an epoch that an earlier attempt trained keeps its time
        stamped.setdefault("time_ms", time.time_ns() // 1_000_000)
        folder.append_event(stamped)
        emit(stamped)
        return stamped

    training = Training(job, folder, programs, import_s, record, judge)
    try:
        training.run()
        result = training.result("finished")
    except DivergedError as error:
        result = training.result("diverged", Failure("diverged", str(error)))
    except PrunedError:
        result = training.result("pruned")
    except Exception as error:
        traceback.print_exc()
        sys.stderr.flush()
        programs.drop_last()
        failure = Failure(type(error).__name__, str(error), folder.log_tail())
        result = training.result("failed", failure)
    folder.write_result(to_plain(result))
    if result.status in CONCLUSIVE:
        folder.checkpoint.unlink(missing_ok=True)


@dataclass(frozen=True)
class _Setting:
    """What a training works on, once its data and program are there."""

    config: RunConfig
    dataset: Dataset
    plan: Plan
    program: Program
    trainer: Trainer
    weights: Weights
    state: State | None
    epochs_before: int


class Training:
    """One run in progress. What is known so far can be asked for at any time with `result`."""

    def __init__(
        self,
        job: Job,
        folder: RunFolder,
        programs: Programs,
        import_s: float,
        record: Record,
        judge: Judge | None,
    ) -> None:
        self._job = job
        self._folder = folder
        self._programs = programs
        self._record = record
        self._judge = judge
        self._epochs: list[dict[str, Any]] = []
        self._kept = 0  # of the epochs, those of an earlier attempt
        self._metrics: dict[str, float] = {}
        self._timing: dict[str, Any] = {"import_s": import_s}
        self._environment: dict[str, Any] = {"versions": job.versions}
        self._start: dict[str, Any] | None = None

    def run(self) -> None:
        """Train and evaluate; raises DivergedError, PrunedError, or whatever the framework raises."""
        peak_is_of_run = timing.reset_peak_memory()
        device_peak_is_of_run = self._programs.adapter.start_device_peak()
        self._record({"event": "started", "pid": os.getpid()})
        setting, new = self._set_up()
        checkpoints = Checkpoints(self._folder, setting.config.checkpoint)
        setting = self._go_on(setting, checkpoints)
        compiled_before = setting.program.compilations()
        if new:
            self._warm_up(setting)
        load_before, ticks_before = timing.load_average(), host.ticks()
        train_all(setting.trainer, self._epochs_left(setting, checkpoints))
        self._timing["load"] = [load_before, timing.load_average()]
        self._timing["steal"] = host.steal_since(ticks_before)
        self._timing["compilations"] = setting.program.compilations() - (0 if new else compiled_before)
        self._evaluate(setting)
        trainer, epochs = setting.trainer, setting.config.train.epochs
        self._folder.write_end(trainer.weights(), trainer.state(), epochs)
        self._summarise(setting, peak_is_of_run)
        if setting.plan.device != "cpu":
            self._timing["device_peak_of"] = "run" if device_peak_is_of_run else "worker"

    def result(self, status: Status, error: Failure | None = None) -> Result:
        """The result as it stands."""
        return Result(
            run_id=self._job.run_id,
            status=status,
            error=error,
            metrics=self._metrics,
            epochs=tuple(self._epochs),
            timing=self._timing,
            environment=self._environment,
            certificate=self._job.certificate,
            start=self._start,
        )

    def _set_up(self) -> tuple[_Setting, bool]:
        start = timing.ClockReading.now()
        config = RunConfig.parse(self._job.config)
        results_dir = self._folder.path.parents[1]
        dataset = config.model.view(open_dataset(results_dir / self._job.data_file))
        plan = config.plan(dataset)
        loaded = timing.ClockReading.now()
        program, new = self._programs.get(plan)
        examples = Examples(dataset.x, dataset.y, dataset.lengths)
        trainer = program.trainer(examples, config.optimizer, config.seed)
        source = self._source(config)
        begin = start_of.check(config, plan, source)
        if source is not None or begin.frozen:
            self._start = to_plain(begin)
        initial, state = start_of.initial(config, plan, source)
        setting = _Setting(config, dataset, plan, program, trainer, initial, state, begin.epochs)
        trainer.load(initial, state)
        built = timing.ClockReading.now()
        self._timing["data_s"] = loaded.since(start).wall_s
        self._timing["build_s"] = built.since(loaded).wall_s
        self._timing["new_program"] = new
        self._meter = environment.meter(plan.device)
        adapter, settings = self._programs.adapter, program.settings()
        self._environment = environment.describe(self._job, plan, adapter, settings, self._meter)
        return setting, new

    def _source(self, config: RunConfig) -> SourceRun | None:
        """The run that this one starts from; raises RuntimeError if it is no longer what it was."""
        if config.init.from_run is None:
            return None
        source = start_of.read(RunFolder(self._folder.path.parent / config.init.from_run))
        if source.digest != self._job.source:
            raise RuntimeError(f"run {source.run_id} was done again meanwhile; ask for this one once more")
        return source

    def _go_on(self, setting: _Setting, checkpoints: Checkpoints) -> _Setting:
        """The setting at the checkpoint of an earlier attempt, if it left one; its epochs are ours too."""
        kept = checkpoints.take_up(setting.trainer, setting.weights, setting.state)
        if kept is None:
            return setting
        self._timing["resumed_from_epoch"] = kept.epoch
        for event in kept.events:
            self._kept += 1
            checkpoints.add(self._ended(event))
        return replace(setting, weights=kept.weights, state=kept.state, epochs_before=kept.epoch)

    def _ended(self, event: Mapping[str, Any]) -> dict[str, Any]:
        """Record an epoch; raises PrunedError where the shell wants no more."""
        stamped = self._record(event)
        record = epoch_record(stamped)
        self._epochs.append(record)
        if self._judge is not None and not self._judge():
            self._metrics |= record["metrics"]
            raise PrunedError
        return stamped

    def _warm_up(self, setting: _Setting) -> None:
        epoch = Epoch(_orders(setting, 1), _rates(setting)[0])
        start = timing.ClockReading.now()
        setting.trainer.train([epoch])
        setting.trainer.sync()
        self._timing["first_epoch_s"] = timing.ClockReading.now().since(start).wall_s
        setting.trainer.predict("val")
        setting.trainer.load(setting.weights, setting.state)

    def _epochs_left(self, setting: _Setting, checkpoints: Checkpoints) -> Epochs:
        """For the trainer, which trains where this yields: there the clock runs."""
        trainer = setting.trainer
        rates = _rates(setting)
        for epoch in range(1 + setting.epochs_before, setting.config.train.epochs + 1):
            order = _orders(setting, epoch)
            trainer.sync()
            self._meter.begin()
            start = timing.ClockReading.now()
            yield Epoch(order, rates[epoch - 1])
            trainer.sync()
            passed = timing.ClockReading.now().since(start)
            energy = self._meter.end()
            losses = trainer.losses()
            self._check_finite(setting, epoch, bool(np.isfinite(losses).all()))
            found = _evaluate(setting, "val")
            self._check_finite(setting, epoch, math.isfinite(found["val/loss"]))
            values = {"train/loss": float(losses.mean())} | {k: found[k] for k in METRICS if k in found}
            event = {
                "event": "epoch",
                "epoch": epoch,
                "steps": len(order),
                "samples": int(order.size),
                "train_s": passed.wall_s,
                "cpu_s": passed.cpu_s,
                "switches": passed.switches,
                **energy,
                "metrics": values,
            }
            checkpoints.add(self._ended(event))
            if epoch < setting.config.train.epochs:
                checkpoints.write_if_due(trainer)

    def _check_finite(self, setting: _Setting, epoch: int, finite: bool) -> None:
        if not finite:
            raise DivergedError(f"the loss is not finite in epoch {epoch}; {_likely_cause(setting)}")

    def _evaluate(self, setting: _Setting) -> None:
        start = timing.ClockReading.now()
        self._metrics |= self._epochs[-1]["metrics"]
        self._metrics |= _evaluate(setting, "test")
        self._timing["evaluate_s"] = timing.ClockReading.now().since(start).wall_s

    def _summarise(self, setting: _Setting, peak_is_of_run: bool) -> None:
        epoch_s = [epoch["train_s"] for epoch in self._epochs]
        steps, batch_size = setting.plan.steps, setting.plan.batch_size
        step_s = statistics.median(epoch_s) / steps
        first = self._timing.get("first_epoch_s")
        # a program's first epoch compiles and trains; what a later one takes is the training
        later_s = statistics.median(epoch_s[self._kept :] or epoch_s)
        compile_s = 0.0 if first is None else max(0.0, first - later_s)
        step_ms = [1000 * value / steps for value in epoch_s]
        self._timing |= {
            "compile_s": compile_s,
            "train_s": sum(epoch_s),
            "step_ms_quartiles": list(statistics.quartiles(step_ms)),
            "disturbed": timing.disturbances(
                sum(epoch_s),
                sum(epoch["cpu_s"] for epoch in self._epochs),
                self._timing["steal"],
                computes=setting.plan.device == "cpu",
                beside=self._job.beside,
            ),
            "peak_memory_of": "run" if peak_is_of_run else "worker",
        }
        self._metrics |= {
            "speed/step_ms": 1000 * step_s,
            "speed/samples_per_second": batch_size / step_s,
            "speed/gflops": 3 * setting.plan.network.flops() * batch_size / step_s / 1e9,
            "time/import_s": self._timing["import_s"],
            "time/compile_s": compile_s,
            "time/train_s": sum(epoch_s),
            "memory/peak_mb": timing.peak_memory_mb(),
        }
        if self._job.limit_gflops is not None:
            self._metrics["speed/share_of_limit"] = self._metrics["speed/gflops"] / self._job.limit_gflops
        self._metrics |= _time_to_target(setting.config, self._epochs)
        if all("energy_j" in epoch for epoch in self._epochs):
            self._metrics["energy/train_j"] = sum(epoch["energy_j"] for epoch in self._epochs)
        self._metrics |= environment.device_memory(self._programs.adapter)


def _orders(setting: _Setting, epoch: int) -> Any:
    rows = setting.plan.rows[0]
    return batch_order(setting.config.seed, epoch, rows, setting.plan.batch_size)


def _rates(setting: _Setting) -> Any:
    config = setting.config
    rate, epochs = config.optimizer.learning_rate, config.train.epochs
    return schedules.learning_rates(config.schedule, rate, epochs, setting.plan.steps)


def _evaluate(setting: _Setting, split: str) -> dict[str, float]:
    data = setting.dataset
    outputs = setting.trainer.predict("val" if split == "val" else "test")
    values = metrics.evaluate(
        data.task, setting.plan.loss, outputs, data.y[split], data.target_mean, data.target_std
    )
    return {f"{split}/{name}": value for name, value in values.items()}


def _time_to_target(config: RunConfig, epochs: list[dict[str, Any]]) -> dict[str, float]:
    """Training time up to the first epoch that reaches the target; nothing if none does or none is set."""
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


def _likely_cause(setting: _Setting) -> str:
    """Name what probably made the loss blow up: data far from unit scale before the learning rate."""
    data, config = setting.dataset, setting.config.data
    rate = setting.config.optimizer.learning_rate
    largest = float(np.abs(data.x["train"]).max())
    if not config.standardise and largest > 10:
        return f"the inputs are not standardised and reach {largest:g}: try data.standardise=true"
    largest = float(np.abs(data.y["train"]).max())
    if data.task.kind == "regression" and not config.standardise_targets and largest > 10:
        return f"the targets are not standardised and reach {largest:g}: try data.standardise_targets=true"
    return f"the learning rate {rate:g} is probably too high: try optimizer.learning_rate={rate / 10:g}"


__all__ = ["DivergedError", "Programs", "Training", "run"]
