"""One run of a program: loads weights and state, trains by the backend's loop, and reads the results."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from adapters.keras import losses
from adapters.keras.parts import Array, DropoutRng, Inputs, Loop, Parts
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

MIN_CHUNK, MAX_CHUNK = 32, 256
"""Rows per prediction."""


class Trainer:
    """One run of a program, see `harness.core.adapter.Trainer`."""

    def __init__(
        self,
        parts: Parts,
        loop: Loop,
        dropout_rng: DropoutRng | None,
        examples: Examples,
        rule: Rule,
        seed: int,
    ) -> None:
        plan = parts.plan
        self._parts = parts
        self._loop = loop
        self._dropout_rng = dropout_rng
        self._rule = rule
        self._seed = seed
        self._inputs = _inputs(plan, examples)
        loop.feed(self._inputs["train"], losses.targets(plan.loss, examples.y["train"], plan.dtype))
        self.sync = loop.sync

    def load(self, weights: Weights, state: State | None = None) -> None:
        """Load weights, and reset the optimizer and the dropout masks, or restore them from a state."""
        parameters = self._parts.model.parameters
        if parameters.keys() != weights.keys():
            differing = sorted(parameters.keys() ^ weights.keys())
            raise ValueError(f"weights in only one of network and file: {', '.join(differing)}")
        for name, variable in parameters.items():
            if weights[name].shape != tuple(variable.shape):
                problem = f"has the shape {weights[name].shape}, the network needs {tuple(variable.shape)}"
                raise ValueError(f"weights[{name!r}] {problem}")
            variable.assign(weights[name].astype(variable.dtype))
        self._steps, self._rate = (state.steps, state.rate) if state else (0, 0.0)
        self._parts.optimizer.reset(self._rule, self._steps)
        if state is not None:
            self._load_slots(state)
        masks = dict(state.masks) if state else {}
        seed = stream_seed(self._seed, self._steps)
        self._parts.model.seed(seed)
        seeds = self._mask_seeds()
        if masks.keys() >= seeds.keys():
            for name, variable in seeds.items():
                variable.assign(masks[name].astype(variable.dtype))
        self._loop.restart(seed)
        if self._dropout_rng is not None and self._dropout_rng.name in masks:
            self._dropout_rng.restore(masks[self._dropout_rng.name])

    def train(self, epochs: Iterable[Epoch]) -> None:
        """Train, see `harness.core.adapter.Trainer.train`."""
        self._loop.train(self._counted(epochs))

    def _counted(self, epochs: Iterable[Epoch]) -> Iterator[Epoch]:
        """Pass the epochs on, and record the step count and the last rate as each one starts."""
        for epoch in epochs:
            self._steps += len(epoch.order)
            self._rate = last_rate(epoch.rates, self._rate)
            yield epoch

    def losses(self) -> npt.NDArray[np.float64]:
        """The mean loss of each batch of the last epoch, float64 `[steps]`, or of the whole epoch, `[1]`."""
        return self._loop.losses().astype(np.float64)

    def predict(self, split: Split) -> Float:
        """Raw outputs for a split in evaluation mode, `[rows, outputs]`."""
        inputs, plan = self._inputs[split], self._parts.plan
        rows, size = len(inputs[0]), _chunk(plan)
        if not rows:
            return np.zeros((0, *plan.network.out_shape), dtype=plan.dtype)
        whole, rest = divmod(rows, size)
        chunks: list[Any] = [slice(start * size, (start + 1) * size) for start in range(whole)]
        if rest:
            chunks.append(np.arange(whole * size, (whole + 1) * size) % rows)
        outputs = [self._loop.predict(tuple(each[chunk] for each in inputs)) for chunk in chunks]
        joined: Float = np.concatenate(outputs)[:rows]
        return joined

    def weights(self) -> dict[str, Float]:
        """A copy of the current canonical weights."""
        parameters = self._parts.model.parameters
        values = self._loop.read(list(parameters.values()))
        return {name: np.array(value) for name, value in zip(parameters, values, strict=True)}

    def state(self) -> State:
        """The step count, the optimizer's slots (Keras' layouts are canonical), and the state of the dropout
        masks."""
        slots: dict[str, Array] = {}
        trained = self._trained()
        for slot, variables in self._parts.optimizer.slots.items():
            values = self._loop.read(variables) or [np.zeros(variable.shape) for variable in trained.values()]
            slots |= {f"{name}/{slot}": np.array(v) for name, v in zip(trained, values, strict=True)}
        seeds = self._mask_seeds()
        values = self._loop.read(list(seeds.values()))
        masks = {name: np.array(value) for name, value in zip(seeds, values, strict=True)}
        if self._dropout_rng is not None and self._parts.plan.network.has_dropout():
            masks = {self._dropout_rng.name: self._dropout_rng.state()}
        return State(self._steps, self._rate, slots, masks)

    def _load_slots(self, state: State) -> None:
        slots = self._parts.optimizer.slots
        saved = displacements(state) if DISPLACEMENT in slots else velocities(state)
        trained = self._trained()
        check_slots(saved, {f"{n}/{slot}": tuple(v.shape) for n, v in trained.items() for slot in slots})
        for slot, variables in slots.items():
            for name, variable in zip(trained, variables, strict=False):  # no variables with a momentum of 0
                variable.assign(saved[f"{name}/{slot}"].astype(variable.dtype))

    def _trained(self) -> dict[str, Any]:
        """The trainable variables by canonical name, in the order of the optimizer's state."""
        names = {id(variable): name for name, variable in self._parts.model.parameters.items()}
        return {names[id(variable)]: variable for variable in self._parts.trainable}

    def _mask_seeds(self) -> dict[str, Any]:
        """The seed variables of the dropout layers, by their keys in saved training states."""
        generators = self._parts.model.seed_generators if self._dropout_rng is None else ()
        name = keras.backend.backend()
        return {f"{name}.{index}": generator.state for index, generator in enumerate(generators)}


def _chunk(plan: Plan) -> int:
    """Rows per prediction: the size of the validation split, which is predicted after each epoch. The last
    chunk of another split is filled up with other rows, so that all chunks share one program."""
    return min(MAX_CHUNK, max(MIN_CHUNK, plan.rows[1] or plan.rows[2]))


def _inputs(plan: Plan, examples: Examples) -> dict[Split, Inputs]:
    """The inputs of the model, by split."""
    sample = plan.network.input
    dtype = "int32" if sample.vocabulary else plan.dtype
    splits: tuple[Split, ...] = ("train", "val", "test")
    inputs: dict[Split, Inputs] = {split: (np.asarray(examples.x[split], dtype),) for split in splits}
    if not sample.lengths:
        return inputs
    assert examples.lengths is not None, "the network needs lengths, and the examples have none"
    return {split: (*inputs[split], np.asarray(examples.lengths[split], np.int32)) for split in splits}
