"""Execute one run in a worker: load, train epoch by epoch, evaluate, write the result.

Only the training itself is timed, between two clock readings that each follow a `sync()`; orders, learning
rates, losses, metrics and events are computed outside. A program that is new to this worker first trains one
warm-up epoch that is discarded, so that no timed epoch contains compilation.
"""

from __future__ import annotations

import inspect
import math
import os
import sys
import time
import traceback
from collections.abc import Callable, Generator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from harness.core.adapter import Epoch, Examples, Trainer
from harness.core.config.run_config import METRICS, RunConfig
from harness.core.data.dataset import open_dataset
from harness.core.machine import host, timing
from harness.core.runs import warm_start
from harness.core.runs.run_folder import CONCLUSIVE, Failure, Job, Result, RunFolder, Status, epoch_record
from harness.core.runs.warm_start import SourceRun
from harness.core.validation import ConfigError, parse, to_plain
from harness.worker import environment
from harness.worker.checkpoints import Checkpoints
from harness.worker.events import Emit
from harness.worker.program_cache import Programs
from harness.worker.summary import speed_metrics, timing_summary
from harness.worker.training_setup import TrainingSetup

Epochs = Generator[Epoch, None, None]
"""Yields epochs to a trainer; the code after a `yield` runs when the trainer has trained that epoch."""
Record = Callable[[Mapping[str, Any]], dict[str, Any]]
"""Appends an event to the run's folder and sends it to the shell; returns it with its time."""
ShouldContinue = Callable[[], bool]
"""Waits for the shell to decide, after an epoch, whether the run continues."""


class DivergedError(Exception):
    """A loss or an output is not finite."""


class PrunedError(Exception):
    """The shell ends the run early."""


def run(
    folder: RunFolder,
    programs: Programs,
    import_s: float,
    emit: Emit,
    should_continue: ShouldContinue | None = None,
) -> None:
    """Execute the run of a folder and write its result there; every error becomes a recorded failure."""
    job = parse(Job, folder.job())

    def record(event: Mapping[str, Any]) -> dict[str, Any]:
        stamped = dict(event)  # an epoch of an earlier attempt keeps its time
        stamped.setdefault("time_ms", time.time_ns() // 1_000_000)
        folder.append_event(stamped)
        emit(stamped)
        return stamped

    training = Training(job, folder, programs, import_s, record, should_continue)
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
        failure = Failure(type(error).__name__, _message(error), folder.log_tail())
        result = training.result("failed", failure)
    folder.write_result(to_plain(result))
    if result.status in CONCLUSIVE:
        folder.checkpoint.unlink(missing_ok=True)


def _message(error: Exception) -> str:
    """What an error says; a ConfigError's own text would claim that nothing was started."""
    if isinstance(error, ConfigError):
        return "; ".join(mistake.problem for mistake in error.mistakes)
    return str(error)


def train_all(trainer: Trainer, epochs: Epochs) -> None:
    """Train all epochs; raises RuntimeError if the trainer stops before their end."""
    trainer.train(epochs)
    if inspect.getgeneratorstate(epochs) != inspect.GEN_CLOSED:
        raise RuntimeError("the adapter stopped before it had trained all epochs")


class Training:
    """One run in progress; `result` gives what is known of it at any time."""

    def __init__(
        self,
        job: Job,
        folder: RunFolder,
        programs: Programs,
        import_s: float,
        record: Record,
        should_continue: ShouldContinue | None,
    ) -> None:
        self._job = job
        self._folder = folder
        self._programs = programs
        self._record = record
        self._should_continue = should_continue
        self._epochs: list[dict[str, Any]] = []
        self._resumed_epochs = 0  # how many of `_epochs` an earlier attempt trained
        self._metrics: dict[str, float] = {}
        self._timing: dict[str, Any] = {"import_s": import_s}
        self._environment: dict[str, Any] = {"versions": job.versions}
        self._start: dict[str, Any] | None = None

    def run(self) -> None:
        """Train and evaluate; raises DivergedError, PrunedError, or what the framework raises."""
        peak_is_of_run = timing.reset_peak_memory()
        device_peak_is_of_run = self._programs.adapter.start_device_peak()
        self._record({"event": "started", "pid": os.getpid()})
        setup, new = self._set_up()
        checkpoints = Checkpoints(self._folder, setup.config.checkpoint)
        setup = self._resume(setup, checkpoints)
        compiled_before = setup.program.compilations()
        if new:
            self._warm_up(setup)
        load_before, ticks_before = timing.load_average(), host.ticks()
        train_all(setup.trainer, self._remaining_epochs(setup, checkpoints))
        self._timing["load"] = [load_before, timing.load_average()]
        self._timing["steal"] = host.steal_since(ticks_before)
        self._timing["compilations"] = setup.program.compilations() - (0 if new else compiled_before)
        self._evaluate(setup)
        trainer, epochs = setup.trainer, setup.config.train.epochs
        self._folder.write_end(trainer.weights(), trainer.state(), epochs)
        self._timing |= timing_summary(
            setup, self._job, self._epochs, self._resumed_epochs, self._timing, peak_is_of_run
        )
        self._metrics |= speed_metrics(setup, self._job, self._epochs, self._timing)
        self._metrics |= environment.device_memory(self._programs.adapter)
        if setup.plan.device != "cpu":
            self._timing["device_peak_of"] = "run" if device_peak_is_of_run else "worker"

    def result(self, status: Status, error: Failure | None = None) -> Result:
        """The result so far."""
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

    def _set_up(self) -> tuple[TrainingSetup, bool]:
        """Load the data, build the program and load the initial weights; also whether the program is new."""
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
        begin = warm_start.check(config, plan, source)
        if source is not None or begin.frozen:
            self._start = to_plain(begin)
        weights, state = warm_start.initial(config, plan, source)
        setup = TrainingSetup(config, dataset, plan, program, trainer, weights, state, begin.epochs)
        trainer.load(weights, state)
        built = timing.ClockReading.now()
        self._timing["data_s"] = loaded.since(start).wall_s
        self._timing["build_s"] = built.since(loaded).wall_s
        self._timing["new_program"] = new
        self._meter = environment.meter(plan.device)
        adapter, settings = self._programs.adapter, program.settings()
        self._environment = environment.describe(self._job, plan, adapter, settings, self._meter)
        return setup, new

    def _source(self, config: RunConfig) -> SourceRun | None:
        """The run whose weights this one starts from; raises RuntimeError if it has changed since."""
        if config.init.from_run is None:
            return None
        source = warm_start.read(RunFolder(self._folder.path.parent / config.init.from_run))
        if source.digest != self._job.source:
            raise RuntimeError(
                f"run {source.run_id} was repeated in the meantime; run the same command again"
            )
        return source

    def _resume(self, setup: TrainingSetup, checkpoints: Checkpoints) -> TrainingSetup:
        """Continue from the checkpoint of an earlier attempt, if any; its epochs count as this run's."""
        checkpoint = checkpoints.restore(setup.trainer, setup.weights, setup.state)
        if checkpoint is None:
            return setup
        self._timing["resumed_from_epoch"] = checkpoint.epoch
        for event in checkpoint.events:
            self._resumed_epochs += 1
            checkpoints.add(self._record_epoch(event))
        return replace(
            setup, weights=checkpoint.weights, state=checkpoint.state, epochs_before=checkpoint.epoch
        )

    def _record_epoch(self, event: Mapping[str, Any]) -> dict[str, Any]:
        """Record an epoch; raises PrunedError if the shell ends the run."""
        stamped = self._record(event)
        record = epoch_record(stamped)
        self._epochs.append(record)
        if self._should_continue is not None and not self._should_continue():
            self._metrics |= record["metrics"]
            raise PrunedError
        return stamped

    def _warm_up(self, setup: TrainingSetup) -> None:
        epoch = Epoch(setup.order(1), setup.learning_rates()[0])
        start = timing.ClockReading.now()
        setup.trainer.train([epoch])
        setup.trainer.sync()
        self._timing["first_epoch_s"] = timing.ClockReading.now().since(start).wall_s
        setup.trainer.predict("val")
        setup.trainer.load(setup.weights, setup.state)

    def _remaining_epochs(self, setup: TrainingSetup, checkpoints: Checkpoints) -> Epochs:
        """The epochs that are left; the trainer trains each one during its `yield`, which is timed."""
        trainer = setup.trainer
        rates = setup.learning_rates()
        for epoch in range(1 + setup.epochs_before, setup.config.train.epochs + 1):
            order = setup.order(epoch)
            trainer.sync()
            self._meter.begin()
            start = timing.ClockReading.now()
            yield Epoch(order, rates[epoch - 1])
            trainer.sync()
            elapsed = timing.ClockReading.now().since(start)
            energy = self._meter.end()
            losses = trainer.losses()
            self._check_finite(setup, epoch, bool(np.isfinite(losses).all()))
            validation = setup.evaluate("val")
            self._check_finite(setup, epoch, math.isfinite(validation["val/loss"]))
            values = {"train/loss": float(losses.mean())}
            values |= {name: validation[name] for name in METRICS if name in validation}
            event = {
                "event": "epoch",
                "epoch": epoch,
                "steps": len(order),
                "samples": int(order.size),
                "train_s": elapsed.wall_s,
                "cpu_s": elapsed.cpu_s,
                "switches": elapsed.switches,
                **energy,
                "metrics": values,
            }
            checkpoints.add(self._record_epoch(event))
            if epoch < setup.config.train.epochs:
                checkpoints.write_if_due(trainer)

    def _check_finite(self, setup: TrainingSetup, epoch: int, finite: bool) -> None:
        if not finite:
            cause = setup.cause_of_divergence()
            raise DivergedError(f"the loss is not finite in epoch {epoch}; {cause}")

    def _evaluate(self, setup: TrainingSetup) -> None:
        start = timing.ClockReading.now()
        self._metrics |= self._epochs[-1]["metrics"]
        self._metrics |= setup.evaluate("test")
        self._timing["evaluate_s"] = timing.ClockReading.now().since(start).wall_s
