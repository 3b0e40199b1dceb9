"""`evenbench export`: a finished run's network as a standalone model of PyTorch, Keras or ONNX.

The target may belong to another framework than the run's, since weights are canonical. A worker writes the
model, loads it and compares it with the run's network (see `harness/worker/export.py`); the folder gets its
final name only after that, so a folder holds a whole, checked model.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.core.adapter import Precision, storage
from harness.core.config.run_config import FrameworkConfig, RunConfig
from harness.core.export.exporter import Target
from harness.core.export.refit import Preprocessing, refit
from harness.core.runs.run_folder import Job, RunFolder
from harness.core.storage import npz
from harness.core.storage.dates import today
from harness.core.validation import ConfigError, Mistake, nearest, parse
from harness.shell.commands.parser import Parser, Subcommand
from harness.shell.environment.frameworks import conf_folder, frameworks
from harness.shell.environment.versions import installed, look_up, versions
from harness.shell.reports.export_readme import write_description
from harness.shell.runs.find_run import find_run
from harness.shell.runs.inputs import DatasetCache
from harness.shell.workers.key import WorkerKey
from harness.shell.workers.process import Worker, WorkerDiedError

FRAMEWORKS: dict[Target, tuple[str, ...]] = {
    "torch": ("torch",),
    "keras": ("keras", "keras_jax", "keras_torch"),
    "onnx": ("torch",),
}
"""Frameworks that can write a target: the run's own if it is among them, else the first installed."""

PACKAGES: dict[Target, tuple[str, ...]] = {
    "torch": ("safetensors",),
    "keras": (),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
}
"""Packages that a target needs besides the framework."""

LOSS_BOUND = 1e-3
ROUGH_LOSS_BOUND = 0.05  # for a run in tf32 or bf16: the model is checked, and used, in float32
"""Bounds of the difference between the recorded test loss and the loss of the stored weights, relative to a
loss of at least 1. A run on a GPU may have multiplied in TF32, which resolves 1e-3 of a factor; data or
weights of another run differ more."""


class FailedExportError(Exception):
    """The model could not be written, or it is not the run's network."""


def export(results_dir: Path, name: str, to: Target, output: Path | None) -> tuple[Path, dict[str, Any]]:
    """Write the model; returns its folder and the content of `export.json`.

    Raises ConfigError for a wrong request, FailedExportError if the model can't be written or deviates.
    """
    folder = find_run(results_dir, name, "run id")
    job, config = _read(folder)
    target = output or results_dir / "exports" / f"{folder.run_id}-{to}"
    _check_output(target)
    framework = _framework(config, to)
    packages = _packages(framework, to)
    datasets = DatasetCache()
    dataset, file = datasets.get(config.data, results_dir)
    datasets.write(results_dir)
    fitted = refit(config.data, config.model.view(dataset))
    precision: Precision = storage(config.precision)
    own = replace(config, framework=framework, execution=framework.execution)
    request = replace(own, device="cpu", precision=precision)
    command = {"to": to, "run_id": job.run_id, "config": request.to_plain()}
    paths = {"weights": folder.path / "weights.npz", "data": results_dir / file}
    with _staged(target) as staging:
        reply = _export_in_worker(request, command, paths, fitted, staging)
        _check(reply, folder, LOSS_BOUND if request.precision == config.precision else ROUGH_LOSS_BOUND)
        description = {
            "run_id": job.run_id,
            "to": to,
            "model": config.model.name,
            "data": config.data.name,
            "trained_in": config.framework.name,
            "exported_by": framework.name,
            "made": today(),
            "versions": versions(framework) | packages,
            "precision": config.precision,
            **{key: reply[key] for key in ("inputs", "outputs", "rows", "deviation", "bound", "test_loss")},
        }
        write_description(description, fitted, staging)
    return target, description


def _read(folder: RunFolder) -> tuple[Job, RunConfig]:
    """The job and configuration of a finished run; raises ConfigError."""
    status = folder.status()
    if status != "finished" or not (folder.path / "weights.npz").exists():
        state = f"ended as {status!r}" if status not in (None, "finished") else "has not finished"
        problem = f"run {folder.run_id} {state}, so it has no trained weights"
        raise ConfigError([Mistake("run id", problem, "a run whose status is finished")])
    job = parse(Job, folder.job())
    return job, RunConfig.parse(job.config)


def _framework(config: RunConfig, to: Target) -> FrameworkConfig:
    """The framework that writes the target: the run's own if it can, with its interpreter."""
    by_name = frameworks([conf_folder()])
    candidates = [by_name[name] for name in FRAMEWORKS[to]]
    if config.framework.adapter == candidates[0].adapter:
        return config.framework
    return next((one for one in candidates if installed(one.distributions)), candidates[0])


def _packages(framework: FrameworkConfig, to: Target) -> dict[str, str]:
    """The versions of the packages that a target needs besides the framework; raises ConfigError."""
    packages = look_up(framework, PACKAGES[to])
    missing = [name for name, version in packages.items() if version is None]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        problem = f"{to} needs {', '.join(missing)}, which {verb} not installed"
        advice = f"pip install 'evenbench[export]', or {' '.join(missing)}"
        raise ConfigError([Mistake("--to", problem, advice)])
    return {name: version for name, version in packages.items() if version}


def _export_in_worker(
    config: RunConfig,
    command: Mapping[str, Any],
    paths: Mapping[str, Path],
    fitted: Preprocessing,
    staging: Path,
) -> dict[str, Any]:
    """Have a worker write the model and check it; returns the worker's reply."""
    worker = Worker(WorkerKey.of(config))
    try:
        with tempfile.TemporaryDirectory(prefix="evenbench-export-") as scratch:
            raw = Path(scratch) / "raw.npz"
            npz.save(raw, fitted.arrays())
            files = {"raw": raw, "folder": staging, **paths}
            return worker.export({**command, **{name: str(path.resolve()) for name, path in files.items()}})
    except WorkerDiedError as error:
        raise FailedExportError("\n".join(filter(None, (error.exit.log_tail, error.exit.message)))) from error
    finally:
        worker.close()


def _check(reply: Mapping[str, Any], folder: RunFolder, loss_bound: float) -> None:
    """Raise FailedExportError unless the model is the run's network and yields the run's test loss."""
    if "error" in reply:
        raise FailedExportError(f"run {folder.run_id} can't be exported: {reply['error']}")
    if not reply["deviation"] <= reply["bound"]:
        raise FailedExportError(
            f"the exported model deviates from run {folder.run_id} by {reply['deviation']:.1e}, "
            f"the bound is {reply['bound']:g}; a recurrent network with large weights can amplify rounding "
            "in float32 that much, which the same run with precision=float64 would show"
        )
    recorded = (folder.result() or {})["metrics"]["test/loss"]
    if not abs(reply["test_loss"] - recorded) <= loss_bound * max(1.0, abs(recorded)):
        raise FailedExportError(
            f"the weights of run {folder.run_id} give a test loss of {reply['test_loss']:.6g}, "
            f"and {recorded:.6g} was recorded: its data or weights have changed"
        )


def _check_output(target: Path) -> None:
    """Raise ConfigError if the target exists and is not an earlier export."""
    usable = not target.exists() or (
        target.is_dir() and ((target / "export.json").exists() or not any(target.iterdir()))
    )
    if not usable:
        problem = f"{str(target)!r} exists and is not an exported model"
        raise ConfigError([Mistake("--output", problem, "a new folder, or one of an earlier export")])


@contextlib.contextmanager
def _staged(target: Path) -> Iterator[Path]:
    """A folder under a temporary name next to `target`, renamed to `target` unless something is raised."""
    staging = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    old = staging.with_suffix(".old")
    try:
        staging.mkdir(parents=True)
    except OSError as error:
        problem = f"{str(target)!r} can't be written: {error.strerror}"
        raise ConfigError([Mistake("--output", problem, "a folder of yours")]) from error
    try:
        yield staging
        if target.exists():
            os.replace(target, old)
        os.replace(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def report(target: Path, description: Mapping[str, Any]) -> str:
    """The result for the user, two lines."""
    model = f"{description['model']} on {description['data']}, trained in {description['trained_in']}"
    return (
        f"{model}: {target}\n"
        f"deviation {description['deviation']:.1e} of at most {description['bound']:g} "
        f"on {description['rows']} test rows after loading; see README.md there for its use"
    )


EXAMPLES = """\
  evenbench export last --to torch                 the run that finished last
  evenbench export 1f3a --to keras                 the beginning of a run id is enough
  evenbench export 1f3a --to onnx --output served/digits"""


def _options(parser: Parser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run id or its beginning, or last")
    parser.add_argument("--to", required=True, metavar="TARGET", help="torch, keras or onnx")
    folder = "default: exports/ in the results folder"
    parser.add_argument("--output", type=Path, metavar="FOLDER", help=folder)


def _run(options: argparse.Namespace) -> int:
    if options.to not in FRAMEWORKS:
        problem, targets = f"unknown target {options.to!r}", tuple(FRAMEWORKS)
        raise ConfigError([Mistake("--to", problem, ", ".join(targets), nearest(options.to, targets))])
    try:
        print(report(*export(options.results_dir.resolve(), options.run, options.to, options.output)))
    except FailedExportError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


COMMAND = Subcommand(
    name="export",
    summary="Export a finished run's network as a standalone model, checked against the run.",
    examples=EXAMPLES,
    run=_run,
    options=_options,
    arguments="RUN --to TARGET",
)
