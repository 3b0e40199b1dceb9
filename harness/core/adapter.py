"""The protocol that every framework's adapter implements.

An adapter builds a *program* from a plan: the model, its loss and its optimizer, compiled as the execution
requires. Programs are cached by plan and serve all runs that differ only in numbers. A run gets a *trainer*
from a program: data on the device, weights loaded, epochs trained. The harness computes the order of batches
and the learning rates of a whole epoch and passes them in, so both are the same in every framework by
construction, and each framework may run the epoch in its fastest way.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from harness.core.network import Network
from harness.core.training.optimizers import Rule
from harness.core.training.training_state import State

Execution = Literal["idiomatic", "eager", "compiled", "epoch"]
Precision = Literal["float32", "float64", "tf32", "bf16"]
"""float32 and float64 are exact formats, on a GPU too. `tf32` lets a GPU's matrix units round the factors of
products to 10 bits. `bf16` is the framework's own mixed precision: most layers compute in bfloat16."""
Storage = Literal["float32", "float64"]
Split = Literal["train", "val", "test"]
Loss = Literal["mse", "binary_cross_entropy", "cross_entropy"]

Float = npt.NDArray[np.floating]


def storage(precision: Precision) -> Storage:
    """Return the dtype of weights, gradients, optimizer state, losses and predictions in a precision."""
    return "float64" if precision == "float64" else "float32"


def factors(precision: Precision) -> str:
    """Return the dtype of the matrices whose product defines a precision's matrix limit."""
    return "bfloat16" if precision == "bf16" else storage(precision)


Weights = Mapping[str, Float]
"""Canonical weights by name, in the layout that `harness.core.network` defines."""


@dataclass(frozen=True)
class Plan:
    """Everything that a compiled program depends on; equal plans share one program.

    `rule` is the optimizer as returned by `harness.core.training.optimizers.program_rule`: numbers that are
    inputs of a program have neutral values. `xla`: whether TensorFlow compiles with XLA (JAX always does);
    None leaves it to the adapter. `rows` are the rows of each split, in the order train, val, test; data of
    another size needs another program. Nodes of the network that are `frozen` are not trained: their weights
    stay bit for bit as loaded (no weight decay either), and a frozen BatchNorm normalises by its running
    statistics, which do not change either, in training as in evaluation. Dropout stays active in frozen
    layers.
    """

    network: Network
    loss: Loss
    rule: Rule
    batch_size: int
    steps: int
    rows: tuple[int, int, int]
    precision: Precision = "float32"
    execution: Execution = "eager"
    xla: bool | None = False
    device: str = "cpu"

    @property
    def dtype(self) -> Storage:
        """The dtype of all arrays passed in and out, see `storage`."""
        return storage(self.precision)


@dataclass(frozen=True)
class Examples:
    """The arrays of a run, by split.

    `x`: float64 `[rows, *sample_shape]`. Adapters cast it to the plan's dtype, or to integers if
    `plan.network.input.vocabulary` is not 0 (token ids). `y`: int64 class numbers `[rows]`, or float64
    `[rows, targets]` for a regression or a reconstruction. `lengths`: int64 `[rows]`, the valid steps of each
    row if `plan.network.input.lengths` is set; later steps are 0.
    """

    x: Mapping[str, npt.NDArray[np.float64]]
    y: Mapping[str, npt.NDArray[np.int64] | npt.NDArray[np.float64]]
    lengths: Mapping[str, npt.NDArray[np.int64]] | None = None


class Epoch(NamedTuple):
    """The inputs of an epoch: step by step, the row numbers of the batch and the learning rate.

    `order`: rows of the training split, int32 `[steps, batch_size]`. `rates`: float64 `[steps]`.
    """

    order: npt.NDArray[np.int32]
    rates: npt.NDArray[np.float64]


class Trainer(Protocol):
    """One run of a program: the data is on the device, the optimizer's state belongs to this run.

    Only one trainer of a program is used at a time.
    """

    def load(self, weights: Weights, state: State | None = None) -> None:
        """Load canonical weights, and the state of the training to resume.

        Without a state, the optimizer's state is zero, its step count 0, and the dropout stream starts from
        the run's seed. With a state from the same framework, execution and machine, the training continues
        bit for bit as it would have there; with any other state, everything but the dropout masks continues.
        Loading again restarts: it gives the same numbers. Raises ValueError for weights or slots that are not
        exactly the program's.
        """
        ...

    def train(self, epochs: Iterable[Epoch]) -> None:
        """Train one epoch after another until `epochs` is exhausted: at its simplest a `for` loop.

        An epoch's clock runs from when the iterator yields it until the next one is requested, so nothing may
        be converted, evaluated or logged here. The next epoch may be requested before the device is done,
        since `sync` waits. Between epochs the caller may use any method except `load` and `train`. A
        framework whose loop covers all epochs (Keras' `fit`) makes one call and requests the epochs from
        within.
        """
        ...

    def losses(self) -> npt.NDArray[np.float64]:
        """Return the mean loss of each batch of the last epoch, float64 `[steps]`.

        It is `[1]` if the execution only provides the epoch's mean (Keras `fit`).
        """
        ...

    def predict(self, split: Split) -> Float:
        """Return raw network outputs (logits) for a split, without dropout, `[rows, outputs]`."""
        ...

    def weights(self) -> dict[str, Float]:
        """Return the current canonical weights, in the plan's dtype."""
        ...

    def state(self) -> State:
        """Return the current state besides the weights: optimizer slots, step count, dropout stream.

        Frozen weights have no slots.
        """
        ...

    def sync(self) -> None:
        """Block until the device has finished all work."""
        ...


class Program(Protocol):
    """A model with its loss and optimizer, compiled for a plan."""

    def trainer(self, examples: Examples, rule: Rule, seed: int) -> Trainer:
        """Start a run with the actual numbers in `rule`; `seed` is that of the dropout masks."""
        ...

    def compilations(self) -> int:
        """Return how often the framework has compiled or traced for this program, from its own counters.

        0 if nothing is ever compiled. A run that needs no compilation leaves it unchanged.
        """
        ...

    def settings(self) -> dict[str, object]:
        """Return what actually runs, recorded with every result, in JSON values:
        `{"optimizer": "torch.optim.Adam", "fused": true, "xla": false, ...}`.

        `deviations`: the names of a native optimizer's deviations from the rule, which certificates prove.
        `xla`: whether XLA compiles, if the framework has the choice. In bf16: `autocast` or `dtype_policy`,
        and `float32_layers`, the layers that are not computed in bfloat16.
        """
        ...


class Adapter(Protocol):
    """One framework in this process.

    A module named by `framework.adapter` has a function `adapter(options: AdapterOptions) -> Adapter`.
    """

    def executions(self) -> tuple[Execution, ...]:
        """Return the executions that work on the worker's device."""
        ...

    def environment(self) -> dict[str, object]:
        """Return versions, device and thread counts as reported by the framework; JSON values.

        `tf32` tells whether products on a card are rounded to TF32 (False on a CPU).
        """
        ...

    def build(self, plan: Plan) -> Program:
        """Build the program of a plan; it is compiled in its first epoch.

        Raises ConfigError for an execution, layer or precision that the framework cannot run, with those that
        it can: training something else than was requested is worse than refusing.
        """
        ...

    def multiply(self, size: int, repeats: int) -> list[float]:
        """Time `repeats` products of two `[size, size]` matrices, one at a time; return the seconds of each.

        They run in the worker's precision and on its device, and show this framework's upper limit of speed.
        The times exclude compilation and allocation (`harness.core.machine.matmul.time_calls`).
        """
        ...

    def start_device_peak(self) -> bool:
        """Reset the peak of `device_peak_mb`; False if unsupported: the peak is then the whole process'."""
        ...

    def device_peak_mb(self) -> float | None:
        """Return the framework's peak use of a card's memory, in MB (10^6 bytes); None on a CPU."""
        ...


@dataclass(frozen=True)
class AdapterOptions:
    """Options that are fixed for a worker's lifetime, because frameworks fix them at import."""

    backend: str
    precision: Precision
    threads: int
    device: str
