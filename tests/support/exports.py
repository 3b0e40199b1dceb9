"""What the export tests ask an adapter, inside a lab's child, and what they run without evenbench."""

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
    sys.exit("evenbench is there")

import numpy as np

def of_torch(folder, x, *lengths):
    import importlib.util, torch
    spec = importlib.util.spec_from_file_location("model", folder / "model.py")
    model = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(model)
    with torch.inference_mode():
        return model.load()(*map(torch.from_numpy, (x, *lengths))).numpy()

def of_keras(folder, x, *lengths):
    import keras
    model = keras.saving.load_model(folder / "model.keras", safe_mode=True)
    return model.predict([x, *lengths] if lengths else x, verbose=0)

def of_onnx(folder, x, *lengths):
    import onnxruntime
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    return session.run(None, dict(zip(("x", "lengths"), (x, *lengths))))[0]

predict = {"torch": of_torch, "keras": of_keras, "onnx": of_onnx}[sys.argv[1]]
for folder in map(Path, sys.argv[2:]):
    with np.load(folder / "raw.npz", allow_pickle=False) as raw:
        given = [raw[name] for name in ("x", "lengths") if name in raw]
    # five rows: no exporter has seen this size
    np.save(folder / "alone.npy", predict(folder, *(part[:5] for part in given)))
assert "harness" not in sys.modules and "adapters" not in sys.modules
"""
"""A program that predicts with exported models: the target, then folders that hold a model and `raw.npz`."""


def written(adapter: Adapter, module: str, commands: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Carry out export commands; what the worker says of each, and what the adapter's network predicts."""
    programs, found = Programs(adapter), []
    for command in commands:
        said: list[Any] = []
        export(command, module, programs, said.append)
        config = RunConfig.parse(command["config"])
        dataset = config.model.view(open_dataset(Path(command["data"])))
        examples = Examples(dataset.x, dataset.y, dataset.lengths)
        trainer = programs.get(config.plan(dataset))[0].trainer(examples, config.optimizer, 0)
        trainer.load(npz.load(Path(command["weights"])))
        found.append({"said": said, "expected": trainer.predict("test")})
    return found


def deviations(
    adapter: Adapter, module: str, to: Any, tasks: dict[str, Any], weights: dict[str, Any], folder: str
) -> dict[str, float]:
    """How far models of small networks are from the adapter's, their rows scaled and shifted."""
    exporter, found = importlib.import_module(f"{module}.export").exporter(to), {}
    for name, task in tasks.items():
        rule = {"name": "sgd", "impl": "shared", "learning_rate": 0.1}
        plan = adapter_cases.plan(task, rule)
        trainer = adapter.build(plan).trainer(adapter_cases.examples(task), adapter_cases.rule(rule), 0)
        trainer.load(weights[name])
        x, scaling = task["x"]["test"], None
        if not plan.network.input.vocabulary:
            # of each feature for sequences, of each place for all others
            shape = x.shape[-1:] if plan.network.input.lengths else x.shape[1:]
            places = np.arange(math.prod(shape)).reshape(shape)
            scaling = Scaling(places % 7 - 3.0, 1.0 + places % 4)
            x = x * scaling.scale + scaling.mean
        classes = Task("classification", task["outputs"], ("a", "b", "c"))
        wanted = Export(
            "0", "m", "d", classes, plan.network, weights[name], plan.loss, plan.precision, scaling, None
        )
        path = Path(folder) / name
        path.mkdir()
        exporter.write(wanted, path)
        lengths = (task["lengths"]["test"],) if task.get("lengths") else ()
        outputs = exporter.predict(path, (x.astype(input_dtype(wanted)), *lengths))
        found[name] = deviation(wanted, outputs, trainer.predict("test"))
    return found
