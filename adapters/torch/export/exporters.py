"""Exporters of a trained network: to plain PyTorch (source and safetensors) and to ONNX.

torch's own exporter creates the ONNX file from the same PyTorch module, so the layers are mapped only once.
safetensors, onnx, onnxscript and onnxruntime are imported where they are used: training does not need them.
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

from adapters.torch.export.source import dtype, module_source
from harness.core.adapter import Float
from harness.core.export.exporter import Export, Exporter, Target, input_dtype
from harness.core.validation import ConfigError, Mistake

CHUNK = 1024  # rows of a forward pass, to limit its memory
EXAMPLE_ROWS = 3  # for tracing, which treats the sizes 0 and 1 as constants


def exporter(target: Target) -> Exporter:
    """Return the exporter for the target; raises ConfigError for a target of another framework."""
    match target:
        case "torch":
            return ToTorch()
        case "onnx":
            return ToOnnx()
        case _:
            raise ConfigError([Mistake("--to", f"torch cannot write {target!r}", "torch, onnx")])


class ToTorch:
    """Writes `model.py` and `model.safetensors`."""

    def write(self, export: Export, folder: Path) -> None:
        """See `harness.core.export.exporter.Exporter`."""
        from safetensors.torch import save_file

        text, state = module_source(export)
        (folder / "model.py").write_text(text, encoding="utf-8")
        save_file(state, folder / "model.safetensors", {"format": "pt", "run_id": export.run_id})

    def predict(self, folder: Path, inputs: tuple[NDArray[Any], ...]) -> Float:
        """See `harness.core.export.exporter.Exporter`."""
        path = folder / "model.py"
        network = _module(path.read_text(encoding="utf-8"), path).load()
        return _chunked(lambda *part: network(*part).numpy(), inputs)


class ToOnnx:
    """Writes `model.onnx`, for batches of any size."""

    def write(self, export: Export, folder: Path) -> None:
        """See `harness.core.export.exporter.Exporter`."""
        text, state = module_source(export)
        network: nn.Module = _module(text, folder / "model.py").Network().to(dtype(export)).eval()
        network.load_state_dict(state)
        sample = export.network.input
        x = torch.zeros(EXAMPLE_ROWS, *sample.shape, dtype=getattr(torch, input_dtype(export)))
        arguments: tuple[Tensor, ...] = (x,)
        if sample.lengths:
            arguments += (torch.full((EXAMPLE_ROWS,), sample.shape[0], dtype=torch.int64),)
        rows = torch.export.Dim("rows")
        with _quiet():
            torch.onnx.export(
                network,
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
        options.log_severity_level = 4  # errors are raised as well
        try:
            session = onnxruntime.InferenceSession(
                folder / "model.onnx", options, providers=["CPUExecutionProvider"]
            )
            names = [argument.name for argument in session.get_inputs()]

            def outputs(*part: Tensor) -> NDArray[Any]:
                results = session.run(None, {n: p.numpy() for n, p in zip(names, part, strict=True)})
                return np.asarray(results[0])

            return _chunked(outputs, inputs)
        except (errors.NotImplemented, errors.RuntimeException) as error:
            # in float64 it has no convolutions and no LSTMs; it raises at loading or at running
            problem = f"onnxruntime can't run this network: {error}"
            advice = "torch or keras; or, for a run in float64, one with precision=float32"
            raise ConfigError([Mistake("--to", problem, advice)]) from error


def _module(text: str, path: Path) -> ModuleType:
    """Execute the source of a module without importing it, so that no bytecode file is written."""
    module = ModuleType("exported")
    module.__file__ = str(path)
    exec(compile(text, path, "exec"), module.__dict__)
    return module


def _chunked(outputs: Any, inputs: tuple[NDArray[Any], ...]) -> Float:
    """Apply `outputs` to chunks of rows and join the results."""
    with torch.inference_mode():
        parts = zip(*(torch.split(torch.from_numpy(x), CHUNK) for x in inputs), strict=True)
        return np.concatenate([outputs(*part) for part in parts])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's warnings about missing packages and about its internals."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
