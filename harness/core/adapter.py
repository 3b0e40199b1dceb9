"""The protocol that every framework fulfils, from a network to numbers.

An adapter builds a *program* from a plan: the model, its loss and its optimizer, compiled the way that the
execution asks for. A program is kept by its plan and serves every run that differs in numbers only. A run
gets a *trainer* from it: data on the device, weights loaded, epochs trained. The harness makes the order of
batches and the learning rates of a whole epoch and hands them over, so both are the same in every framework
by construction, and each framework is free to run the epoch in its fastest way.
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
"""float32 and float64 are what they say, on a GPU too; `tf32` lets its matrix units round the factors of
products to 10 bits; `bf16` is the framework's own mixed precision: most layers compute in bfloat16."""
Storage = Literal["float32", "float64"]
Split = Literal["train", "val", "test"]
Loss = Literal["mse", "binary_cross_entropy", "cross_entropy"]

Float = npt.NDArray[np.floating]


def storage(precision: Precision) -> Storage:
    """The dtype of weights, gradients, optimizer state, losses and predictions in a precision."""
    return "float64" if precision == "float64" else "float32"


def factors(precision: Precision) -> str:
    """The dtype of the matrices whose product is a precision's matrix limit."""
    return "bfloat16" if precision == "bf16" else storage(precision)


Weights = Mapping[str, Float]
"""Canonical weights by name, in the layout that `harness.core.network` fixes."""


@dataclass(frozen=True)
class Plan:
    """Everything that a compiled program depends on; equal plans share one program.

    `rule` is what `harness.core.training.optimizers.program_rule` leaves of the optimizer: numbers that
    programs take as inputs are neutral in it. `xla` says whether TensorFlow compiles with XLA (JAX always
    does), None leaves it to the adapter. `rows` are the rows of each split, in the order train, val, test;
    data of other sizes needs another program. Nodes of the network that are `frozen` are not trained: their
    weights stay as they are loaded bit for bit (no weight decay either), and a frozen BatchNorm normalises by
    its running statistics, which stay as well, in training as in evaluation. Dropout goes on in a frozen
    part.
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
        """What arrays come and go in, see `storage`."""
        return storage(self.precision)


@dataclass(frozen=True)
class Examples:
    """The arrays of a run, by split: `x` float64 `[rows, *sample_shape]`; `y` int64 class numbers `[rows]`,
    or float64 `[rows, targets]` for a regression or a reconstruction. Adapters cast `x` to the plan's
    dtype; where `plan.network.input.vocabulary` is not 0 it holds token ids, which are cast to whole
    numbers. `lengths`, int64 `[rows]`, are the valid steps of each row where `plan.network.input.lengths`
    says that they differ; the steps after them are 0."""

    x: Mapping[str, npt.NDArray[np.float64]]
    y: Mapping[str, npt.NDArray[np.int64] | npt.NDArray[np.float64]]
    lengths: Mapping[str, npt.NDArray[np.int64]] | None = None


class Epoch(NamedTuple):
    """What is trained in an epoch: on the rows `order[step]` of the training split at the learning rate
    `rates[step]`, step by step. `order` is int32 `[steps, batch_size]`, `rates` float64 `[steps]`."""

    order: npt.NDArray[np.int32]
    rates: npt.NDArray[np.float64]


class Trainer(Protocol):
    """One run of a program: the data is on the device, the optimizer's state belongs to this run.

    Only one trainer of a program is in use at a time.
    """

    def load(self, weights: Weights, state: State | None = None) -> None:
        """Take canonical weights, and the state of the training that is to go on from there.

        Without a state the optimizer's is set to zero, its step count to 0 and the dropout stream to the
        run's seed. With one that this framework gave, in the same execution and on the same machine, what
        follows is what would have followed there, bit for bit; of a state from elsewhere everything but the
        masks goes on. Loading again starts over: the second time gives the same numbers. Raises ValueError
        for weights or slots that are not exactly the program's.
        """
        ...

    def train(self, epochs: Iterable[Epoch]) -> None:
        """Train one epoch after another, as long as `epochs` has more: at its simplest a `for` loop.

        The clock of an epoch runs from when it is handed over until the next one is asked for, so nothing is
        converted, evaluated or logged here; it may be asked for before the device is done, as `sync` waits.
        Whoever hands the epochs over may call everything but `load` and `train` in between. So a framework
        whose loop is over all epochs (Keras' `fit`) has them in one call, and asks from within.
        """
        ...

    def losses(self) -> npt.NDArray[np.float64]:
        """The mean loss of each batch of the epoch trained last, float64 `[steps]`; where the execution only
        has the epoch's mean (Keras `fit`), `[1]`."""
        ...

    def predict(self, split: Split) -> Float:
        """Raw network outputs (logits) for a split, in evaluation mode (no dropout), `[rows, outputs]`."""
        ...

    def weights(self) -> dict[str, Float]:
        """The canonical weights as they are now, in the plan's dtype."""
        ...

    def state(self) -> State:
        """What else the training is as of now: the optimizer's slots, its step count, the place in the
        stream of dropout masks. Frozen weights have no slots."""
        ...

    def sync(self) -> None:
        """Return when the device has done all that was asked of it."""
        ...


class Program(Protocol):
    """A model with its loss and optimizer, compiled for a plan."""

    def trainer(self, examples: Examples, rule: Rule, seed: int) -> Trainer:
        """Start a run: `rule` has the run's real numbers, `seed` is that of the dropout masks."""
        ...

    def compilations(self) -> int:
        """How often the framework has compiled or traced something for this program, from its own counters
        (0 where nothing is ever compiled). A run that needs no compilation leaves it as it was."""
        ...

    def settings(self) -> dict[str, object]:
        """What actually runs, as recorded with every result, in JSON values:
        `{"optimizer": "torch.optim.Adam", "fused": true, "xla": false, ...}`."""
        ...


class Adapter(Protocol):
    """One framework in this process. Modules named by `framework.adapter` have a function
    `adapter(options: AdapterOptions) -> Adapter`."""

    def executions(self) -> tuple[Execution, ...]:
        """The executions that work on the device that was asked for."""
        ...

    def environment(self) -> dict[str, object]:
        """Versions, device and thread counts as the framework itself reports them; JSON values."""
        ...

    def build(self, plan: Plan) -> Program:
        """The program of a plan, not compiled yet: that happens at its first epoch."""
        ...

    def multiply(self, size: int, repeats: int) -> list[float]:
        """The seconds of each of `repeats` products of two `[size, size]` matrices, one at a time, in the
        process' precision and on its device: how fast this framework can be at most
        (`harness/core/machine/matmul.py` has `times` for the clock). What is compiled or allocated for it is
        not in the times."""
        ...

    def start_device_peak(self) -> bool:
        """Begin a new peak of `device_peak_mb`; False where the framework can't: it is then the process'."""
        ...

    def device_peak_mb(self) -> float | None:
        """The most memory of a card, in MB (10^6 bytes), that the framework had in use; None on a CPU."""
        ...


@dataclass(frozen=True)
class AdapterOptions:
    """What is fixed for a worker's whole life, because frameworks fix it at import."""

    backend: str
    precision: Precision
    threads: int
    device: str
