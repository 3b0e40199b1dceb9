"""The files that describe an exported model: `export.json`, `README.md`, and the vocabulary of a text
model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.core.export.exporter import Target
from harness.core.export.refit import Preprocessing
from harness.core.storage.json_files import write_json

USAGE: dict[Target, str] = {
    "torch": """\
```python
import torch
from model import load  # model.py: plain PyTorch; pip install torch safetensors

network = load()
with torch.inference_mode():
    outputs = network({arguments})
```""",
    "keras": """\
```python
import keras  # on any backend

network = keras.saving.load_model("model.keras")
outputs = network.predict({listed})
```""",
    "onnx": """\
```python
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
(outputs,) = session.run(None, {{{fed}}})
```""",
}
README = """\
# {model} on {data}
The network of evenbench run {run_id}, trained in {framework}. It takes rows as they come from their source
and needs no evenbench:

{usage}

{described}
{vocabulary}
`export.json` has the versions that wrote it, and the largest difference between its predictions and those of
the run's network on the {rows} test rows: {deviation:.1e} of at most {bound:g}.
"""
VOCABULARY = """
`vocabulary.json` has the id of each word. Its regular expression `pattern` finds the words in a text in lower
case.
"""


def write_description(description: Mapping[str, Any], fitted: Preprocessing, staging: Path) -> None:
    """Write `export.json`, `README.md`, and the vocabulary of a text model."""
    write_json(staging / "export.json", description)
    if fitted.words:
        vocabulary = {"padding": 0, "unknown": 1, "pattern": fitted.pattern, "words": fitted.words}
        write_json(staging / "vocabulary.json", vocabulary)
    names = ["x"] if len(description["inputs"]) == 1 else ["x", "lengths"]
    usage = USAGE[description["to"]].format(
        arguments=", ".join(names),
        listed="x" if len(names) == 1 else f"[{', '.join(names)}]",
        fed=", ".join(f'"{name}": {name}' for name in names),
    )
    text = README.format(
        usage=usage,
        framework=description["trained_in"],
        vocabulary=VOCABULARY if fitted.words else "",
        described="\n".join(f"- {line}" for line in (*description["inputs"], description["outputs"])),
        **{key: description[key] for key in ("model", "data", "run_id", "rows", "deviation", "bound")},
    )
    (staging / "README.md").write_text(text, encoding="utf-8")
