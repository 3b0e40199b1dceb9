"""Program and trainer for every backend of Keras; how the steps are driven is the backend's own: a `Loop`.

The Keras model and optimizer hold the state between runs; a loop trains them, or takes their values over and
trains those (JAX, whose arrays can't be changed in place).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import keras
import numpy as np
import numpy.typing as npt

from adapters.keras import losses, model, optimizers
from adapters.keras.layer_parts import BuildOptions, Compiler
from harness.core.adapter import Epoch, Examples, Float, Plan, Split, Weights
from harness.core.training.optimizers import Rule
from harness.core.training.training_state import (
    DISPLACEMENT,
    State,
    check_slots,
    displacements,
    last_rate,
    stream_seed,
    velocities,
)

Array = npt.NDArray[Any]
Inputs = tuple[Any, ...]
"""What the model takes of some rows: x, and of padded sequences their lengths. Arrays or tensors."""

FEWEST, MOST = 32, 256
"""Rows that are predicted at a time."""


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
    plan: Plan, compiler: Compiler, look_up: optimizers.LookUp = optimizers.indexed, kind: type | None = None
) -> Parts:
    """Build the model and the optimizer of a plan; `kind` is a subclass of keras.Model to make."""
    setting = BuildOptions(plan.dtype, compiler, plan.device, plan.precision == "bf16")
    built = model.build(plan.network, setting, kind)
    variables = list(built.keras.trainable_variables)
    optimizer = optimizers.build(plan.rule, variables, plan.steps, plan.dtype, look_up)
    return Parts(plan, built, optimizer)


class Loop(Protocol):
    """How one backend drives the steps of a program, and reads what came out."""

    def feed(self, inputs: Inputs, y: Array) -> None:
        """Put the training rows on the device; they replace those of the run before."""
        ...

    def restart(self, seed: int) -> None:
        """Take the state over from the Keras model and optimizer, which were loaded just now."""
        ...

    def train(self, epochs: Iterable[Epoch]) -> None:
        """See `harness.core.adapter.Trainer.train`."""
        ...

    def losses(self) -> Array:
        """See `harness.core.adapter.Trainer.losses`; any dtype."""
        ...

    def predict(self, inputs: Inputs) -> Array:
        """Raw outputs in evaluation mode for as many rows as at every call, see `_chunk`."""
        ...

    def read(self, variables: Sequence[Any]) -> list[Array]:
        """The values that variables of the model and of the optimizer have now."""
        ...

    def sync(self) -> None:
        """Wait for the device."""
        ...

    def compilations(self) -> int:
        """How often something was traced or compiled for this program."""
        ...


class Stream(Protocol):
    """The backend's own stream of random numbers, where dropout draws from that and not from a variable."""

    name: str

    def place(self) -> Array:
        """Where it is."""
        ...

    def go_to(self, place: Array) -> None:
        """Draw on from there."""
        ...


class Program:
    """A model with its loss and optimizer, driven by the loop of its execution."""

    def __init__(
        self,
        parts: Parts,
        loop: Loop,
        settings: Mapping[str, object],
        sparse: bool = False,
        stream: Stream | None = None,
    ) -> None:
        """`sparse`: the optimizer gets an embedding's gradient as rows, see `optimizers.SPARSE_DEVIATION`."""
        self._parts = parts
        self._loop = loop
        self._sparse = sparse
        self._stream = stream
        self._settings = dict(settings)

    def trainer(self, examples: Examples, rule: Rule, seed: int) -> Trainer:
        """Start a run, see `harness.core.adapter.Program.trainer`."""
        return Trainer(self._parts, self._loop, self._stream, examples, rule, seed)

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
            **self._parts.model.mixture(),
            **self._settings,
        }


class Trainer:
    """One run of a program, see `harness.core.adapter.Trainer`."""

    def __init__(
        self, parts: Parts, loop: Loop, stream: Stream | None, examples: Examples, rule: Rule, seed: int
    ) -> None:
        plan = parts.plan
        self._parts = parts
        self._loop = loop
        self._stream = stream
        self._rule = rule
        self._seed = seed
        self._inputs = _inputs(plan, examples)
        loop.feed(self._inputs["train"], losses.targets(plan.loss, examples.y["train"], plan.dtype))
        self.sync = loop.sync

    def load(self, weights: Weights, state: State | None = None) -> None:
        """Start over with these weights, a fresh optimizer and the run's dropout stream, or from a state."""
        parameters = self._parts.model.parameters
        if parameters.keys() != weights.keys():
            differing = sorted(parameters.keys() ^ weights.keys())
            raise ValueError(f"weights that only the network or only the file has: {', '.join(differing)}")
        for name, variable in parameters.items():
            if weights[name].shape != tuple(variable.shape):
                problem = f"has the shape {weights[name].shape}, the network needs {tuple(variable.shape)}"
                raise ValueError(f"weights[{name!r}] {problem}")
            variable.assign(weights[name].astype(variable.dtype))
        self._steps, self._rate = (state.steps, state.rate) if state else (0, 0.0)
        self._parts.optimizer.reset(self._rule, self._steps)
        if state is not None:
            self._take_slots(state)
        masks = dict(state.masks) if state else {}
        seed = stream_seed(self._seed, self._steps)
        self._parts.model.seed(seed)
        streams = self._streams()
        if masks.keys() >= streams.keys():
            for name, variable in streams.items():
                variable.assign(masks[name].astype(variable.dtype))
        self._loop.restart(seed)
        if self._stream is not None and self._stream.name in masks:
            self._stream.go_to(masks[self._stream.name])

    def train(self, epochs: Iterable[Epoch]) -> None:
        """Train, see `harness.core.adapter.Trainer.train`."""
        self._loop.train(self._noted(epochs))

    def _noted(self, epochs: Iterable[Epoch]) -> Iterator[Epoch]:
        """The same epochs; the steps and the last rate of each are noted as it is handed over."""
        for epoch in epochs:
            self._steps += len(epoch.order)
            self._rate = last_rate(epoch.rates, self._rate)
            yield epoch

    def losses(self) -> npt.NDArray[np.float64]:
        """The mean loss of each batch of the last epoch, or of the epoch, float64."""
        return self._loop.losses().astype(np.float64)

    def predict(self, split: Split) -> Float:
        """Raw outputs for a split in evaluation mode, `[rows, outputs]`."""
        inputs, plan = self._inputs[split], self._parts.plan
        rows, size = len(inputs[0]), _chunk(plan)
        if not rows:
            return np.zeros((0, *plan.network.out_shape), dtype=plan.dtype)
        whole, rest = divmod(rows, size)
        places: list[Any] = [slice(start * size, (start + 1) * size) for start in range(whole)]
        if rest:
            places.append(np.arange(whole * size, (whole + 1) * size) % rows)
        chunks = [self._loop.predict(tuple(each[place] for each in inputs)) for place in places]
        outputs: Float = np.concatenate(chunks)[:rows]
        return outputs

    def weights(self) -> dict[str, Float]:
        """The canonical weights as they are now, copied."""
        parameters = self._parts.model.parameters
        values = self._loop.read(list(parameters.values()))
        return {name: np.array(value) for name, value in zip(parameters, values, strict=True)}

    def state(self) -> State:
        """Steps, the optimizer's slots (Keras' layouts are canonical), and where the streams of masks are."""
        slots: dict[str, Array] = {}
        trained = self._trained()
        for slot, variables in self._parts.optimizer.slots.items():
            kept = self._loop.read(variables) or [np.zeros(variable.shape) for variable in trained.values()]
            slots |= {f"{name}/{slot}": np.array(v) for name, v in zip(trained, kept, strict=True)}
        streams = self._streams()
        places = self._loop.read(list(streams.values()))
        masks = {name: np.array(place) for name, place in zip(streams, places, strict=True)}
        if self._stream is not None and self._parts.plan.network.has_dropout():
            masks = {self._stream.name: self._stream.place()}
        return State(self._steps, self._rate, slots, masks)

    def _take_slots(self, state: State) -> None:
        slots = self._parts.optimizer.slots
        given = displacements(state) if DISPLACEMENT in slots else velocities(state)
        trained = self._trained()
        check_slots(given, {f"{n}/{slot}": tuple(v.shape) for n, v in trained.items() for slot in slots})
        for slot, variables in slots.items():
            for name, variable in zip(trained, variables, strict=False):  # none with a momentum of 0
                variable.assign(given[f"{name}/{slot}"].astype(variable.dtype))

    def _trained(self) -> dict[str, Any]:
        """The trained variables by canonical name, in the order of the optimizer's state."""
        names = {id(variable): name for name, variable in self._parts.model.parameters.items()}
        return {names[id(variable)]: variable for variable in self._parts.trainable}

    def _streams(self) -> dict[str, Any]:
        """The variables that say where the streams of masks are, by name."""
        generators = self._parts.model.seed_generators if self._stream is None else ()
        name = keras.backend.backend()
        return {f"{name}.{index}": generator.state for index, generator in enumerate(generators)}


def _chunk(plan: Plan) -> int:
    """Rows that are predicted at a time: those of the validation part, which is predicted after each epoch.
    The last chunk of another split is filled up, so that all share one program."""
    return min(MOST, max(FEWEST, plan.rows[1] or plan.rows[2]))


def _inputs(plan: Plan, examples: Examples) -> dict[Split, Inputs]:
    """What the model takes, by split."""
    given = plan.network.input
    kind = "int32" if given.vocabulary else plan.dtype
    splits: tuple[Split, ...] = ("train", "val", "test")
    inputs: dict[Split, Inputs] = {split: (np.asarray(examples.x[split], kind),) for split in splits}
    if not given.lengths:
        return inputs
    assert examples.lengths is not None, "the network takes lengths, and the examples have none"
    return {split: (*inputs[split], np.asarray(examples.lengths[split], np.int32)) for split in splits}


def _loss_name(plan: Plan) -> str:
    return type(losses.native(plan.loss)).__name__ if plan.execution == "idiomatic" else plan.loss
