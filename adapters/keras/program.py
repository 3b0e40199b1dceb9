"""Program and trainer for every backend of Keras; how the steps are driven is the backend's own: a `Loop`.

The Keras model and optimizer hold the state between runs; a loop trains them, or takes their values over and
trains those (JAX, whose arrays can't be changed in place).
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import keras
import numpy as np
import numpy.typing as npt

from adapters.keras import losses, model, optimizers
from adapters.keras.built import Compiler, Setting
from harness.adapter import Examples, Float, Plan, Split, Weights
from harness.optim import Rule

Array = npt.NDArray[Any]
Inputs = tuple[Any, ...]
"""What the model takes of some rows: x, and of padded sequences their lengths. Arrays or tensors."""

CHUNK = 256
"""Rows that are predicted at a time. The last chunk is filled up, so that all splits share one program."""


@dataclass(frozen=True, eq=False)
class Parts:
    """What a program is made of: the plan, the model, its optimizer and its loss."""

    plan: Plan
    model: model.Model
    optimizer: optimizers.Optimizer

    @property
    def trainable(self) -> list[Any]:
        """The variables that are trained, in the order of the optimizer's state."""
        return list(self.model.keras.trainable_variables)

    def loss(self, y: Any, outputs: Any) -> Any:
        """The mean loss of a batch, as one scalar."""
        return losses.mean(self.plan.loss, y, outputs)


def native(inputs: Inputs) -> Any:
    """The inputs as a Keras model is called with them."""
    return list(inputs) if len(inputs) > 1 else inputs[0]


def parts(
    plan: Plan, compiler: Compiler, look_up: optimizers.LookUp = operator.getitem, kind: type | None = None
) -> Parts:
    """Build the model and the optimizer of a plan; `kind` is a subclass of keras.Model to make."""
    built = model.build(plan.network, Setting(plan.precision, compiler, plan.device), kind)
    variables = list(built.keras.trainable_variables)
    optimizer = optimizers.build(plan.rule, variables, plan.steps, plan.precision, look_up)
    return Parts(plan, built, optimizer)


class Loop(Protocol):
    """How one backend drives the steps of a program, and reads what came out."""

    def feed(self, inputs: Inputs, y: Array) -> None:
        """Put the training rows on the device; they replace those of the run before."""
        ...

    def restart(self, seed: int) -> None:
        """Take the state over from the Keras model and optimizer, which were loaded just now."""
        ...

    def train_epoch(self, order: npt.NDArray[np.int32], learning_rates: npt.NDArray[np.float64]) -> None:
        """See `harness.adapter.Trainer.train_epoch`."""
        ...

    def losses(self) -> Array:
        """See `harness.adapter.Trainer.losses`; any dtype."""
        ...

    def predict(self, inputs: Inputs) -> Array:
        """Raw outputs in evaluation mode for `CHUNK` rows, or fewer if no split has more."""
        ...

    def read(self, variables: Sequence[Any]) -> list[Array]:
        """The values that variables of the model have now."""
        ...

    def sync(self) -> None:
        """Wait for the device."""
        ...

    def compilations(self) -> int:
        """How often something was traced or compiled for this program."""
        ...


class Program:
    """A model with its loss and optimizer, driven by the loop of its execution."""

    def __init__(
        self, parts: Parts, loop: Loop, settings: Mapping[str, object], sparse: bool = False
    ) -> None:
        """`sparse`: the optimizer gets an embedding's gradient as rows, see `optimizers.SPARSE_DEVIATION`."""
        self._parts = parts
        self._loop = loop
        self._sparse = sparse
        self._settings = dict(settings)

    def trainer(self, examples: Examples, rule: Rule, seed: int) -> Trainer:
        """Start a run, see `harness.adapter.Program.trainer`."""
        return Trainer(self._parts, self._loop, examples, rule, seed)

    def compilations(self) -> int:
        """How often something was traced or compiled for this program."""
        return self._loop.compilations()

    def settings(self) -> dict[str, object]:
        """What runs: backend, optimizer, its known deviations from the rule, the backend's own switches."""
        rule = self._parts.plan.rule
        kernels = self._parts.model.recurrent
        return {
            "backend": keras.backend.backend(),
            "optimizer": self._parts.optimizer.name(),
            "deviations": optimizers.deviations(rule, self._sparse),
            "loss": _loss_name(self._parts.plan),
            **({"recurrent": " and ".join(kernels)} if kernels else {}),
            **self._settings,
        }


class Trainer:
    """One run of a program, see `harness.adapter.Trainer`."""

    def __init__(self, parts: Parts, loop: Loop, examples: Examples, rule: Rule, seed: int) -> None:
        plan = parts.plan
        self._parts = parts
        self._loop = loop
        self._rule = rule
        self._seed = seed
        self._inputs = _inputs(plan, examples)
        loop.feed(self._inputs["train"], losses.targets(plan.loss, examples.y["train"], plan.precision))
        self.train_epoch = loop.train_epoch
        self.sync = loop.sync

    def load(self, weights: Weights) -> None:
        """Start over with these weights, a fresh optimizer and the run's dropout stream."""
        parameters = self._parts.model.parameters
        if parameters.keys() != weights.keys():
            differing = sorted(parameters.keys() ^ weights.keys())
            raise ValueError(f"weights that only the network or only the file has: {', '.join(differing)}")
        for name, variable in parameters.items():
            if weights[name].shape != tuple(variable.shape):
                problem = f"has the shape {weights[name].shape}, the network needs {tuple(variable.shape)}"
                raise ValueError(f"weights[{name!r}] {problem}")
            variable.assign(weights[name].astype(variable.dtype))
        self._parts.optimizer.reset(self._rule)
        self._parts.model.seed(self._seed)
        self._loop.restart(self._seed)

    def losses(self) -> npt.NDArray[np.float64]:
        """The mean loss of each batch of the last epoch, or of the epoch, float64."""
        return self._loop.losses().astype(np.float64)

    def predict(self, split: Split) -> Float:
        """Raw outputs for a split in evaluation mode, `[rows, outputs]`."""
        inputs, plan = self._inputs[split], self._parts.plan
        rows, size = len(inputs[0]), min(CHUNK, max(plan.rows))
        if not rows:
            return np.zeros((0, *plan.network.out_shape), dtype=plan.precision)
        filled = np.arange(-(-rows // size) * size).reshape(-1, size) % rows
        chunks = [self._loop.predict(tuple(each[chunk] for each in inputs)) for chunk in filled]
        outputs: Float = np.concatenate(chunks)[:rows]
        return outputs

    def weights(self) -> dict[str, Float]:
        """The canonical weights as they are now, copied."""
        parameters = self._parts.model.parameters
        values = self._loop.read(list(parameters.values()))
        return {name: np.array(value) for name, value in zip(parameters, values, strict=True)}


def _inputs(plan: Plan, examples: Examples) -> dict[Split, Inputs]:
    """What the model takes, by split."""
    given = plan.network.input
    kind = "int32" if given.vocabulary else plan.precision
    splits: tuple[Split, ...] = ("train", "val", "test")
    inputs: dict[Split, Inputs] = {split: (np.asarray(examples.x[split], kind),) for split in splits}
    if not given.lengths:
        return inputs
    assert examples.lengths is not None, "the network takes lengths, and the examples have none"
    return {split: (*inputs[split], np.asarray(examples.lengths[split], np.int32)) for split in splits}


def _loss_name(plan: Plan) -> str:
    return type(losses.native(plan.loss)).__name__ if plan.execution == "idiomatic" else plan.loss
