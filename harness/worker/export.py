"""Write a finished run's network as a model of this worker's framework, and check the model against it.

The adapter's network predicts the test part from the run's weights. The model is loaded from the written
files, gets the same rows without preprocessing, and must give the same numbers.
"""

from __future__ import annotations

import importlib
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.core.adapter import Examples
from harness.core.config.run_config import RunConfig
from harness.core.data.dataset import open_dataset
from harness.core.export.exporter import (
    Export,
    Exporter,
    Scaling,
    bound,
    describe_inputs,
    describe_outputs,
    deviation,
    input_dtype,
)
from harness.core.storage import npz
from harness.core.training import metrics
from harness.core.validation import ConfigError
from harness.worker.events import Emit
from harness.worker.program_cache import Programs


def export(command: Mapping[str, Any], module: str, programs: Programs, emit: Emit) -> None:
    """Execute an `export` task: `to`, `run_id`, `config` (plain, with this worker's framework), and the
    paths `weights`, `data` (a data set's file), `raw` (see `harness/core/export/refit.py`) and `folder`.

    The event has the deviation and its bound, or an `error` message.
    """
    event: dict[str, Any] = {"event": "exported"}
    try:
        exporter: Exporter = importlib.import_module(f"{module}.export").exporter(command["to"])
        event |= _export(command, exporter, programs)
    except ConfigError as error:
        event["error"] = "; ".join(str(mistake) for mistake in error.mistakes)
    except Exception as error:
        traceback.print_exc()
        event["error"] = f"{type(error).__name__}: {error}"
    emit(event)
    emit({"event": "ended"})


def _export(command: Mapping[str, Any], exporter: Exporter, programs: Programs) -> dict[str, Any]:
    config = RunConfig.parse(command["config"])
    dataset = config.model.view(open_dataset(Path(command["data"])))
    plan = config.plan(dataset)
    weights = npz.load(Path(command["weights"]))
    raw = npz.load(Path(command["raw"]))
    model = Export(
        run_id=command["run_id"],
        model=config.model.name,
        data=dataset.name,
        task=dataset.task,
        network=plan.network,
        weights=weights,
        loss=plan.loss,
        precision=plan.dtype,
        inputs=_scaling(raw, "input"),
        outputs=_scaling(raw, "output"),
    )
    trainer = programs.get(plan)[0].trainer(
        Examples(dataset.x, dataset.y, dataset.lengths), config.optimizer, config.seed
    )
    trainer.load(weights)
    expected = trainer.predict("test")
    folder = Path(command["folder"])
    exporter.write(model, folder)
    inputs = (raw["x"].astype(input_dtype(model)), *((raw["lengths"],) if "lengths" in raw else ()))
    actual = exporter.predict(folder, inputs)
    values = metrics.evaluate(
        dataset.task, plan.loss, expected, dataset.y["test"], dataset.target_mean, dataset.target_std
    )
    return {
        "deviation": deviation(model, actual, expected),
        "bound": bound(model, command["to"]),
        "rows": len(expected),
        "test_loss": values["loss"],
        "inputs": describe_inputs(model),
        "outputs": describe_outputs(model),
        "environment": programs.adapter.environment(),
    }


def _scaling(raw: Mapping[str, Any], name: str) -> Scaling | None:
    return Scaling(raw[f"{name}_mean"], raw[f"{name}_scale"]) if f"{name}_mean" in raw else None
