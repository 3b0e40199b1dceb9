"""What the programs of all backends are built of: model, optimizer and loss, and the loop that trains them.

The Keras model and optimizer hold the state between runs. A backend's `Loop` trains them in place, or copies
their values and trains the copies (JAX, whose arrays are immutable).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy.typing as npt

from adapters.keras import losses, model, optimizers
from adapters.keras.layer_parts import BuildOptions, Compiler
from harness.core.adapter import Epoch, Plan

Array = npt.NDArray[Any]
Inputs = tuple[Any, ...]
"""The model's inputs for some rows: x and, for padded sequences, their lengths; arrays or tensors."""


@dataclass(frozen=True, eq=False)
class Parts:
    """The parts of a program: the plan, the model, its optimizer and its loss."""

    plan: Plan
    model: model.Model
    optimizer: optimizers.Optimizer

    @property
    def trainable(self) -> list[Any]:
        """The trainable variables, in the order of the optimizer's state."""
        return list(self.model.keras.trainable_variables)

    def loss(self, y: Any, outputs: Any) -> Any:
        """The mean loss of a batch, as one scalar."""
        return losses.mean(self.plan.loss, y, outputs)


def native(inputs: Inputs) -> Any:
    """The inputs in the form that a Keras model is called with."""
    return list(inputs) if len(inputs) > 1 else inputs[0]


def build_parts(
    plan: Plan,
    compiler: Compiler,
    look_up: optimizers.LookUp = optimizers.indexed,
    model_class: type | None = None,
) -> Parts:
    """Build the model and the optimizer of a plan; `model_class` is a subclass of keras.Model to use."""
    options = BuildOptions(plan.dtype, compiler, plan.device, plan.precision == "bf16")
    network = model.build(plan.network, options, model_class)
    variables = list(network.keras.trainable_variables)
    optimizer = optimizers.build(plan.rule, variables, plan.steps, plan.dtype, look_up)
    return Parts(plan, network, optimizer)


class Loop(Protocol):
    """How a backend runs the training steps of a program and reads the results."""

    def feed(self, inputs: Inputs, y: Array) -> None:
        """Put the training rows on the device, in place of the previous run's."""
        ...

    def restart(self, seed: int) -> None:
        """Start from the state of the Keras model and optimizer, which has just been loaded."""
        ...

    def train(self, epochs: Iterable[Epoch]) -> None:
        """See `harness.core.adapter.Trainer.train`."""
        ...

    def losses(self) -> Array:
        """See `harness.core.adapter.Trainer.losses`; any dtype."""
        ...

    def predict(self, inputs: Inputs) -> Array:
        """Raw outputs in evaluation mode. Every call has the same number of rows, see `_chunk`."""
        ...

    def read(self, variables: Sequence[Any]) -> list[Array]:
        """The current values of variables of the model and the optimizer."""
        ...

    def sync(self) -> None:
        """Wait for the device."""
        ...

    def compilations(self) -> int:
        """The number of traces or compilations for this program."""
        ...


class DropoutRng(Protocol):
    """The backend's own random number generator, for a backend whose dropout does not draw from a variable.

    `name` is its key in saved training states.
    """

    name: str

    def state(self) -> Array:
        """A copy of its state."""
        ...

    def restore(self, state: Array) -> None:
        """Continue from a state."""
        ...
