"""The protocol for exporting a trained network as a standalone model of a framework.

An exported model takes raw rows and returns outputs in the units of the source, so it contains the scales
that were fitted to the training part. Right after it is written, it is loaded again and must predict the same
as the run's network.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from harness.core.adapter import Float, Loss, Storage, Weights
from harness.core.certificates import gates
from harness.core.data.loaders import Task
from harness.core.network import Network, SelfAttention, Shape

Target = Literal["torch", "keras", "onnx"]


@dataclass(frozen=True, eq=False)
class Scaling:
    """Mean and scale, float64, of every element of a sample or of every feature (the last axis)."""

    mean: NDArray[np.float64]
    scale: NDArray[np.float64]

    def broadcast(self, shape: Shape) -> Scaling:
        """Return it for every element of a sample of `shape`, flattened."""
        return Scaling(*(np.broadcast_to(part, shape).ravel() for part in (self.mean, self.scale)))


@dataclass(frozen=True, eq=False)
class Export:
    """A trained network to export.

    `inputs`: the scaling of raw rows, `(x - mean) / scale`; None if they are not scaled. `outputs`: the
    scaling to the source's units, `y * scale + mean`.
    """

    run_id: str
    model: str
    data: str
    task: Task
    network: Network
    weights: Weights
    loss: Loss
    precision: Storage
    inputs: Scaling | None
    outputs: Scaling | None


class Exporter(Protocol):
    """One format of one framework.

    The module `<adapter>.export` has a function `exporter(target: Target) -> Exporter`, which raises
    ConfigError for targets that the framework cannot write.
    """

    def write(self, export: Export, folder: Path) -> None:
        """Write the model's files into an empty folder."""
        ...

    def predict(self, folder: Path, inputs: tuple[NDArray[Any], ...]) -> Float:
        """Load the model again, using only its framework, and return its outputs `[rows, outputs]`.

        `inputs` are x `[rows, *sample]`, in the dtype of `input_dtype`, and lengths int64 `[rows]` if the
        network takes them.
        """
        ...


def bound(export: Export, to: Target) -> float:
    """Return the bound of `deviation` for the run's precision.

    float32 resolves 6e-8. Sums of a deep network in another order, and scaling in float32 instead of float64,
    cause about ten to a hundred times that. In float64 it is the bound of a certificate, except for
    attention, whose scale is rounded to float32 by some runtimes (an error of up to 5e-8): Keras on
    TensorFlow, which the adapter corrects but a file for plain Keras cannot, and onnxruntime, which folds it
    into a float32 attribute (without its MatMulScaleFusion the error of the same file is 4e-16).
    """
    if export.precision == "float32":
        return 1e-5
    attends = any(isinstance(node.layer, SelfAttention) for node in export.network.layers())
    return 1e-7 if to in ("keras", "onnx") and attends else gates.BOUND


def input_dtype(export: Export) -> str:
    """Return the dtype of x: int64 for token ids, otherwise the run's precision."""
    return "int64" if export.network.input.vocabulary else export.precision


def deviation(export: Export, outputs: Float, expected: Float) -> float:
    """Return the largest difference between a model's outputs and the network's own, `[rows, outputs]`.

    It is in the network's units, relative to the largest output or 1, whichever is larger; infinite if a
    value is not finite or shapes differ.
    """
    if outputs.shape != expected.shape or not (np.isfinite(outputs).all() and np.isfinite(expected).all()):
        return float("inf")
    values = outputs.astype(np.float64)
    if export.outputs is not None:
        values = (values - export.outputs.mean) / export.outputs.scale
    size = max(1.0, float(np.abs(expected).max(initial=0.0)))
    return float(np.abs(values - expected).max(initial=0.0)) / size


def describe_inputs(export: Export) -> list[str]:
    """Describe the model's inputs, one line each."""
    sample = export.network.input
    shape = ", ".join(["rows", *map(str, sample.shape)])
    lines = [f"x: {input_dtype(export)} [{shape}]"]
    if sample.vocabulary:
        lines[0] += f", token ids below {sample.vocabulary}: 0 is padding, 1 an unknown word"
    elif export.inputs is not None:
        lines[0] += f", as {export.data} has it: the model standardises it itself"
    else:
        lines[0] += f", as {export.data} has it"
    if sample.lengths:
        lines.append("lengths: int64 [rows], the valid steps of each row; those after them are not looked at")
    return lines


def describe_outputs(export: Export) -> str:
    """Describe the model's outputs in one line."""
    outputs = f"[rows, {export.network.out_shape[0]}]"
    names = ", ".join(export.task.names)
    if export.task.kind == "reconstruction":
        return f"outputs: {outputs}, the reconstruction of x, flattened, in the units of x"
    if export.task.kind == "regression" and export.loss == "mse":
        return f"outputs: {outputs}, {names}, in the units of {export.data}"
    if export.loss == "binary_cross_entropy":
        return (
            f"outputs: {outputs}, the logit (a sigmoid gives the probability) of the second class of: {names}"
        )
    return f"outputs: {outputs}, a logit (softmax gives probabilities) for each class: {names}"
