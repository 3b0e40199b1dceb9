"""The state of a training besides its weights: optimizer state, step count, position of the dropout stream.

Like the weights it has one layout for all frameworks, so that a training can stop in one and resume in
another: the slots of the rules in `harness.core.training.optimizers`, each array in the canonical layout of
its weight. Two parts have no common form and are stored so that the framework that wrote them loses nothing:

- Keras' own SGD stores not the velocity v but the displacement d = -rate * v, which contains the rates of all
  steps. It is stored unchanged, under the name `displacement`. Conversion to a velocity divides by the last
  learning rate: exact if the rate is constant, otherwise as close as the two definitions allow.
- Dropout masks come from a framework's own random stream, which no other framework can continue. Without a
  known position a new stream starts with `stream_seed`, which depends on the step, so that the masks of the
  first epochs are not repeated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.core.storage import npz

Arrays = Mapping[str, npt.NDArray[Any]]
VELOCITY, DISPLACEMENT = "velocity", "displacement"


@dataclass(frozen=True, eq=False)
class State:
    """The state after `steps` steps.

    `rate`: the learning rate of the last step whose rate was above 0 (0.0 if there was none). `slots`: the
    optimizer's arrays by `<weight>/<slot>`, for trained weights only. `masks`: the positions of the streams
    of dropout masks, under names that each framework defines.
    """

    steps: int
    rate: float
    slots: Arrays
    masks: Arrays


def velocities(state: State) -> dict[str, npt.NDArray[Any]]:
    """Return the slots with displacements converted to velocities: v = -d / rate."""
    return _converted(state.slots, DISPLACEMENT, VELOCITY, -1.0 / state.rate if state.rate else 0.0)


def displacements(state: State) -> dict[str, npt.NDArray[Any]]:
    """Return the slots with velocities converted to displacements: d = -rate * v."""
    return _converted(state.slots, VELOCITY, DISPLACEMENT, -state.rate)


def last_rate(rates: npt.NDArray[np.float64], before: float) -> float:
    """Return the last of an epoch's learning rates that is above 0; `before` if none is."""
    if rates[-1] > 0:  # nearly always, and this runs in timed code
        return float(rates[-1])
    above = rates[rates > 0]
    return float(above[-1]) if len(above) else before


def stream_seed(seed: int, steps: int) -> int:
    """Return the seed of the dropout masks for a run that starts after `steps` steps: `seed` itself for 0."""
    return seed if steps == 0 else int(np.random.SeedSequence((seed, steps)).generate_state(1)[0])


def check_slots(slots: Arrays, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raise ValueError unless the slots have exactly the expected names and shapes."""
    shapes = {name: array.shape for name, array in slots.items()}
    if shapes != dict(expected):
        differing = {
            name for name in shapes.keys() | expected.keys() if shapes.get(name) != expected.get(name)
        }
        details = ", ".join(f"{n}: {shapes.get(n)} for {expected.get(n)}" for n in sorted(differing))
        raise ValueError(f"slots that don't fit the optimizer: {details}")


def save(path: Path, state: State, epochs: int) -> None:
    """Write the state after `epochs` epochs to an npz file, atomically."""
    npz.save(path, to_arrays(state, epochs))


def load(path: Path) -> tuple[State, int]:
    """Read what `save` wrote: the state, and the number of epochs."""
    return from_arrays(npz.load(path))


def to_arrays(state: State, epochs: int) -> dict[str, npt.NDArray[Any]]:
    """Return the state after `epochs` epochs as arrays by name, in the form of the file."""
    numbers = {"epochs": np.int64(epochs), "steps": np.int64(state.steps), "rate": np.float64(state.rate)}
    arrays: dict[str, Any] = {name: np.asarray(number) for name, number in numbers.items()}
    arrays |= {f"slots/{name}": array for name, array in state.slots.items()}
    arrays |= {f"masks/{name}": array for name, array in state.masks.items()}
    return arrays


def from_arrays(arrays: Arrays) -> tuple[State, int]:
    """Return the state and the number of epochs from the arrays of `to_arrays`; ignores other arrays."""

    def below(prefix: str) -> dict[str, npt.NDArray[Any]]:
        return {name.removeprefix(prefix): a for name, a in arrays.items() if name.startswith(prefix)}

    state = State(int(arrays["steps"]), float(arrays["rate"]), below("slots/"), below("masks/"))
    return state, int(arrays["epochs"])


def _converted(slots: Arrays, old: str, new: str, factor: float) -> dict[str, npt.NDArray[Any]]:
    converted: dict[str, npt.NDArray[Any]] = {}
    for name, array in slots.items():
        weight, _, slot = name.rpartition("/")
        converted[f"{weight}/{new}" if slot == old else name] = array * factor if slot == old else array
    return converted
