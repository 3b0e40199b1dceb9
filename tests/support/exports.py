"""Cases of the export tests in an adapter's process, and their program that predicts without evenbench."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from typing import Any

import numpy as np

from harness.core.adapter import Adapter, Examples
from harness.core.config.run_config import RunConfig
from harness.core.data.dataset import open_dataset
from harness.core.data.loaders import Task
from harness.core.export.exporter import Export, Scaling, deviation, input_dtype
from harness.core.storage import npz
from harness.worker.export import export
from harness.worker.program_cache import Programs
from tests.support import adapter_cases

ALONE = """
import json, sys
from pathlib import Path

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("harness", "adapters", "tests"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Hidden())
try:
    import harness
except ModuleNotFoundError:
    pass
else:
    sys.exit("evenbench can be imported")

import numpy as np

def predict_torch(folder, x, *lengths):
    import importlib.util, torch
    spec = importlib.util.spec_from_file_location("model", folder / "model.py")
    model = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(model)
    with torch.inference_mode():
        return model.load()(*map(torch.from_numpy, (x, *lengths))).numpy()

def predict_keras(folder, x, *lengths):
    import keras
    model = keras.saving.load_model(folder / "model.keras", safe_mode=True)
    return model.predict([x, *lengths] if lengths else x, verbose=0)

def predict_onnx(folder, x, *lengths):
    import onnxruntime
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    return session.run(None, dict(zip(("x", "lengths"), (x, *lengths))))[0]

predict = {"torch": predict_torch, "keras": predict_keras, "onnx": predict_onnx}[sys.argv[1]]
for folder in map(Path, sys.argv[2:]):
    with np.load(folder / "raw.npz", allow_pickle=False) as raw:
        inputs = [raw[name] for name in ("x", "lengths") if name in raw]
    # five rows: a batch size that the exporter has not seen
    np.save(folder / "alone.npy", predict(folder, *(part[:5] for part in inputs)))
assert "harness" not in sys.modules and "adapters" not in sys.modules
"""
"""A program that predicts with exported models. Arguments: the target, then folders with a model and
`raw.npz`."""


def written(adapter: Adapter, module: str, commands: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Execute export commands; return the worker's events of each and the predictions of the adapter's
    network."""
    programs, results = Programs(adapter), []
    for command in commands:
        events: list[Any] = []
        export(command, module, programs, events.append)
        config = RunConfig.parse(command["config"])
        dataset = config.model.view(open_dataset(Path(command["data"])))
        examples = Examples(dataset.x, dataset.y, dataset.lengths)
        trainer = programs.get(config.plan(dataset))[0].trainer(examples, config.optimizer, 0)
        trainer.load(npz.load(Path(command["weights"])))
        results.append({"events": events, "expected": trainer.predict("test")})
    return results


def deviations(
    adapter: Adapter, module: str, to: Any, tasks: dict[str, Any], weights: dict[str, Any], folder: str
) -> dict[str, float]:
    """Largest deviation of each small network's export from the adapter, on scaled and shifted rows."""
    exporter, largest = importlib.import_module(f"{module}.export").exporter(to), {}
    for name, task in tasks.items():
        rule = {"name": "sgd", "impl": "shared", "learning_rate": 0.1}
        plan = adapter_cases.plan(task, rule)
        trainer = adapter.build(plan).trainer(adapter_cases.examples(task), adapter_cases.rule(rule), 0)
        trainer.load(weights[name])
        x, scaling = task["x"]["test"], None
        if not plan.network.input.vocabulary:
            # one scale per feature of sequences, one per position of all other inputs
            shape = x.shape[-1:] if plan.network.input.lengths else x.shape[1:]
            index = np.arange(math.prod(shape)).reshape(shape)
            scaling = Scaling(index % 7 - 3.0, 1.0 + index % 4)
            x = x * scaling.scale + scaling.mean
        classes = Task("classification", task["outputs"], ("a", "b", "c"))
        exported = Export(
            "0", "m", "d", classes, plan.network, weights[name], plan.loss, plan.precision, scaling, None
        )
        path = Path(folder) / name
        path.mkdir()
        exporter.write(exported, path)
        lengths = (task["lengths"]["test"],) if task.get("lengths") else ()
        outputs = exporter.predict(path, (x.astype(input_dtype(exported)), *lengths))
        largest[name] = deviation(exported, outputs, trainer.predict("test"))
    return largest
