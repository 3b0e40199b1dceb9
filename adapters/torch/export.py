"""A trained network as plain PyTorch (a module's source and its state as safetensors) or as ONNX.

ONNX is made by torch's own exporter from that same module, so there is one mapping of layers. safetensors,
onnx, onnxscript and onnxruntime are imported where they are needed: training does without them.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from adapters.torch import export_source
from harness.core.adapter import Float
from harness.core.export.exporter import Export, Exporter, Target, input_dtype
from harness.core.validation import ConfigError, Mistake

CHUNK = 1024  # rows of a forward pass, which bounds its memory
EXAMPLE_ROWS = 3  # to trace with; 0 and 1 are sizes that tracing takes for constants


def exporter(target: Target) -> Exporter:
    """What writes the target; raises ConfigError for another framework's."""
    match target:
        case "torch":
            return ToTorch()
        case "onnx":
            return ToOnnx()
        case _:
            raise ConfigError([Mistake("--to", f"torch writes no {target!r}", "torch, onnx")])


class ToTorch:
    """`model.py` and `model.safetensors`."""

    def write(self, export: Export, folder: Path) -> None:
        """See `harness.core.export.exporter.Exporter`."""
        from safetensors.torch import save_file

        text, state = export_source.write(export)
        (folder / "model.py").write_text(text, encoding="utf-8")
        save_file(state, folder / "model.safetensors", {"format": "pt", "run_id": export.run_id})

    def predict(self, folder: Path, inputs: tuple[NDArray[Any], ...]) -> Float:
        """See `harness.core.export.exporter.Exporter`."""
        path = folder / "model.py"
        network = _module(path.read_text(encoding="utf-8"), path).load()
        return _chunked(lambda *part: network(*part).numpy(), inputs)


class ToOnnx:
    """`model.onnx`, for batches of any size."""

    def write(self, export: Export, folder: Path) -> None:
        """See `harness.core.export.exporter.Exporter`."""
        text, state = export_source.write(export)
        made: nn.Module = _module(text, folder / "model.py").Network().to(export_source.dtype(export)).eval()
        made.load_state_dict(state)
        given = export.network.input
        x = torch.zeros(EXAMPLE_ROWS, *given.shape, dtype=getattr(torch, input_dtype(export)))
        arguments: tuple[Tensor, ...] = (x,)
        if given.lengths:
            arguments += (torch.full((EXAMPLE_ROWS,), given.shape[0], dtype=torch.int64),)
        rows = torch.export.Dim("rows")
        with _quiet():
            torch.onnx.export(
                made,
                arguments,
                folder / "model.onnx",
                input_names=["x", "lengths"][: len(arguments)],
                output_names=["outputs"],
                dynamic_shapes=tuple({0: rows} for _ in arguments),
                dynamo=True,
                external_data=False,
                verbose=False,
            )

    def predict(self, folder: Path, inputs: tuple[NDArray[Any], ...]) -> Float:
        """See `harness.core.export.exporter.Exporter`."""
        import onnxruntime
        from onnxruntime.capi import onnxruntime_pybind11_state as errors

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 4  # what goes wrong is raised as well
        try:
            session = onnxruntime.InferenceSession(
                folder / "model.onnx", options, providers=["CPUExecutionProvider"]
            )
            names = [given.name for given in session.get_inputs()]

            def outputs(*part: Tensor) -> NDArray[Any]:
                found = session.run(None, {n: p.numpy() for n, p in zip(names, part, strict=True)})
                return np.asarray(found[0])

            return _chunked(outputs, inputs)
        except (errors.NotImplemented, errors.RuntimeException) as error:
            # in float64 it has no convolutions and no LSTMs; which, it finds out here or there
            problem = f"onnxruntime can't run this network: {error}"
            advice = "torch or keras; or, for a run in float64, one with precision=float32"
            raise ConfigError([Mistake("--to", problem, advice)]) from error


def _module(text: str, path: Path) -> ModuleType:
    """The module of a source that was written just now; nothing is left beside the file."""
    made = ModuleType("exported")
    made.__file__ = str(path)
    exec(compile(text, path, "exec"), made.__dict__)
    return made


def _chunked(outputs: Any, inputs: tuple[NDArray[Any], ...]) -> Float:
    with torch.inference_mode():
        parts = zip(*(torch.split(torch.from_numpy(x), CHUNK) for x in inputs), strict=True)
        return np.concatenate([outputs(*part) for part in parts])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter has to say of packages that are not installed and of its own workings."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
