"""What an adapter needs to write a trained network as a model of its framework, and what it promises.

An exported model stands alone: it takes rows as they come from their source and gives answers in the source's
units, so the scales that were fitted to the training part travel inside of it. It is loaded anew right after
it was written, and must then predict what the run's network does.
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
    """Mean and scale, float64, of every place of a sample or of every feature (the last axis)."""

    mean: NDArray[np.float64]
    scale: NDArray[np.float64]

    def spread(self, shape: Shape) -> Scaling:
        """The same for every place of a sample of `shape`, flattened."""
        return Scaling(*(np.broadcast_to(part, shape).ravel() for part in (self.mean, self.scale)))


@dataclass(frozen=True, eq=False)
class Export:
    """A trained network. `inputs` is how the rows of its source are scaled (`(x - mean) / scale`), None where
    they are taken as they are; `outputs` gives its answers the source's units (`y * scale + mean`)."""

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
    """One format of one framework. The module `<adapter>.export` has `exporter(target: Target) -> Exporter`,
    which raises ConfigError for what the framework doesn't write."""

    def write(self, export: Export, folder: Path) -> None:
        """Write the model's files into an empty folder."""
        ...

    def predict(self, folder: Path, inputs: tuple[NDArray[Any], ...]) -> Float:
        """Load the model anew, with nothing but its framework, and give its outputs `[rows, outputs]`.

        `inputs` are x `[rows, *sample]`, in the dtype of `input_dtype`, and lengths int64 `[rows]` where the
        network takes them.
        """
        ...


def bound(export: Export, to: Target) -> float:
    """Of `deviation`, in the run's precision.

    float32 resolves 6e-8: the sums of a deep network, taken in another order, and scaling in float32 what
    training scaled in float64 leave some ten to a hundred times that. In float64 it is the bound of a
    certificate, but for attention, whose scale is rounded to float32 by who runs the file (up to 5e-8 off):
    Keras on TensorFlow, which the adapter puts right and a file for plain Keras can't, and onnxruntime, which
    folds it into a float32 attribute (without its MatMulScaleFusion the same file is 4e-16 off).
    """
    if export.precision == "float32":
        return 1e-5
    attends = any(isinstance(node.layer, SelfAttention) for node in export.network.layers())
    return 1e-7 if to in ("keras", "onnx") and attends else gates.BOUND


def input_dtype(export: Export) -> str:
    """The dtype of x: whole numbers for token ids, else the run's precision."""
    return "int64" if export.network.input.vocabulary else export.precision


def deviation(export: Export, found: Float, expected: Float) -> float:
    """The largest difference between a model's outputs and the network's own, `[rows, outputs]`.

    Relative to the largest output, which is at least taken as 1, in the network's units; infinite where
    something is not finite or shapes differ.
    """
    if found.shape != expected.shape or not (np.isfinite(found).all() and np.isfinite(expected).all()):
        return float("inf")
    values = found.astype(np.float64)
    if export.outputs is not None:
        values = (values - export.outputs.mean) / export.outputs.scale
    size = max(1.0, float(np.abs(expected).max(initial=0.0)))
    return float(np.abs(values - expected).max(initial=0.0)) / size


def describe_inputs(export: Export) -> list[str]:
    """What the model takes, a line each."""
    given = export.network.input
    shape = ", ".join(["rows", *map(str, given.shape)])
    lines = [f"x: {input_dtype(export)} [{shape}]"]
    if given.vocabulary:
        lines[0] += f", token ids below {given.vocabulary}: 0 is padding, 1 an unknown word"
    elif export.inputs is not None:
        lines[0] += f", as {export.data} has it: the model standardises it itself"
    else:
        lines[0] += f", as {export.data} has it"
    if given.lengths:
        lines.append("lengths: int64 [rows], the valid steps of each row; those after them are not looked at")
    return lines


def describe_outputs(export: Export) -> str:
    """What the model gives, in one line."""
    outputs = f"[rows, {export.network.out_shape[0]}]"
    names = ", ".join(export.task.names)
    if export.task.kind == "reconstruction":
        return f"outputs: {outputs}, x given back, flattened, in the units of x"
    if export.task.kind == "regression" and export.loss == "mse":
        return f"outputs: {outputs}, {names}, in the units of {export.data}"
    if export.loss == "binary_cross_entropy":
        return (
            f"outputs: {outputs}, the logit (a sigmoid gives the probability) of the second class of: {names}"
        )
    return f"outputs: {outputs}, a logit (softmax gives probabilities) for each class: {names}"
