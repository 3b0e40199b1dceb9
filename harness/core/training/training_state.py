"""What a training is besides its weights: the optimizer's state, the step count, where the dropout masks are.

Like the weights it has one layout for all frameworks, so that a training can stop in one and go on in
another: the slots of `harness.core.training.optimizers`'s rules, each array in the canonical layout of its
weight. Two things have no common form and are kept so that nothing is lost where they are at home:

- Keras' own SGD keeps no velocity v but the displacement d = -rate * v, with the rates of all steps in it.
  It is given as it is, under the name `displacement`. Turned into a velocity, and back, it is divided by the
  last learning rate: exact where the rate is constant, else as close as the two definitions come.
- Masks are drawn from a framework's own stream, which no other one can go on with. Where a stream's place is
  not known, a new one begins, by `stream_seed`: one that depends on the step, so that the masks of the first
  epochs don't come a second time.
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
    """`steps`: how many were done; `rate`: the learning rate of the last step whose rate was above 0 (0.0 if
    there was none); `slots`: the optimizer's arrays by `<weight>/<slot>`, of trained weights only; `masks`:
    where the streams of dropout masks are, under names of the frameworks' own."""

    steps: int
    rate: float
    slots: Arrays
    masks: Arrays


def velocities(state: State) -> dict[str, npt.NDArray[Any]]:
    """The slots with velocities in the place of displacements: v = -d / rate."""
    return _renamed(state.slots, DISPLACEMENT, VELOCITY, -1.0 / state.rate if state.rate else 0.0)


def displacements(state: State) -> dict[str, npt.NDArray[Any]]:
    """The slots with displacements in the place of velocities: d = -rate * v."""
    return _renamed(state.slots, VELOCITY, DISPLACEMENT, -state.rate)


def last_rate(rates: npt.NDArray[np.float64], before: float) -> float:
    """The last of an epoch's learning rates that is above 0; `before` if there is none."""
    if rates[-1] > 0:  # nearly always, and training is timed
        return float(rates[-1])
    above = rates[rates > 0]
    return float(above[-1]) if len(above) else before


def stream_seed(seed: int, steps: int) -> int:
    """The seed of the dropout masks of a run that begins after `steps` steps: its own, at the beginning."""
    return seed if steps == 0 else int(np.random.SeedSequence((seed, steps)).generate_state(1)[0])


def check_slots(given: Arrays, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raise ValueError unless the slots are exactly those that are expected, by name and shape."""
    shapes = {name: array.shape for name, array in given.items()}
    if shapes != dict(expected):
        differing = {
            name for name in shapes.keys() | expected.keys() if shapes.get(name) != expected.get(name)
        }
        named = ", ".join(f"{n}: {shapes.get(n)} for {expected.get(n)}" for n in sorted(differing))
        raise ValueError(f"slots that don't fit the optimizer: {named}")


def save(path: Path, state: State, epochs: int) -> None:
    """Write the state after so many epochs to an npz file, at once or not at all."""
    npz.save(path, to_arrays(state, epochs))


def load(path: Path) -> tuple[State, int]:
    """Read what `save` wrote: the state, and after how many epochs it was."""
    return from_arrays(npz.load(path))


def to_arrays(state: State, epochs: int) -> dict[str, npt.NDArray[Any]]:
    """The state after so many epochs as arrays by name, as they are kept in a file."""
    numbers = {"epochs": np.int64(epochs), "steps": np.int64(state.steps), "rate": np.float64(state.rate)}
    arrays: dict[str, Any] = {name: np.asarray(number) for name, number in numbers.items()}
    arrays |= {f"slots/{name}": array for name, array in state.slots.items()}
    arrays |= {f"masks/{name}": array for name, array in state.masks.items()}
    return arrays


def from_arrays(arrays: Arrays) -> tuple[State, int]:
    """What `to_arrays` was given; others among the arrays are passed over."""

    def below(prefix: str) -> dict[str, npt.NDArray[Any]]:
        return {name.removeprefix(prefix): a for name, a in arrays.items() if name.startswith(prefix)}

    state = State(int(arrays["steps"]), float(arrays["rate"]), below("slots/"), below("masks/"))
    return state, int(arrays["epochs"])


def _renamed(slots: Arrays, old: str, new: str, factor: float) -> dict[str, npt.NDArray[Any]]:
    found: dict[str, npt.NDArray[Any]] = {}
    for name, array in slots.items():
        weight, _, slot = name.rpartition("/")
        found[f"{weight}/{new}" if slot == old else name] = array * factor if slot == old else array
    return found
