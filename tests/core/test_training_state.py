"""The state of a training in its common form: saved without loss, converted where frameworks differ."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from harness.core.training import training_state
from harness.core.training.training_state import State, displacements, last_rate, stream_seed, velocities


def test_a_state_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    """Catches: a slot whose name is cut at the wrong place, a count that lost its type, a mask rounded."""
    slots = {"1.0.body.2.kernel/m": np.arange(6.0).reshape(2, 3), "0.bias/v": np.ones(2, np.float32)}
    masks = {"torch.cpu": np.arange(5, dtype=np.uint8), "jax.0": np.array([3, 2**32 - 1], np.uint32)}
    training_state.save(tmp_path / "state.npz", State(7, 0.1, slots, masks), 3)
    read, epochs = training_state.load(tmp_path / "state.npz")
    assert (read.steps, read.rate, epochs) == (7, 0.1, 3)
    for arrays, expected in ((read.slots, slots), (read.masks, masks)):
        assert arrays.keys() == expected.keys()
        assert all(arrays[n].dtype == a.dtype and np.array_equal(arrays[n], a) for n, a in expected.items())


def test_a_velocity_is_a_displacement_by_the_last_rate() -> None:
    """Catches: a sign or a rate the wrong way round, a division by no rate at all, other slots changed."""
    v = np.array([1.0, -2.0])
    state = State(3, 0.5, {"0.kernel/velocity": v, "0.bias/m": v}, {})
    converted = displacements(state)
    assert np.array_equal(converted["0.kernel/displacement"], [-0.5, 1.0]) and converted["0.bias/m"] is v
    assert np.array_equal(velocities(State(3, 0.5, converted, {}))["0.kernel/velocity"], v)
    still = State(0, 0.0, {"0.kernel/displacement": np.zeros(2)}, {})
    assert np.array_equal(velocities(still)["0.kernel/velocity"], np.zeros(2))


@pytest.mark.parametrize(
    ("rates", "last"), [([0.1, 0.2], 0.2), ([0.1, 0.0], 0.1), ([0.0, 0.0], 0.7), ([0.0, 0.3, 0.0], 0.3)]
)
def test_the_last_rate_is_one_that_moved_something(rates: list[float], last: float) -> None:
    """Catches: a displacement that is divided by zero because the last step was at rate 0."""
    assert last_rate(np.array(rates), 0.7) == last


def test_the_masks_of_a_later_step_are_other_ones() -> None:
    """Catches: a new stream that begins with the masks of the first epoch; a fresh run with other masks."""
    assert stream_seed(5, 0) == 5
    assert len({stream_seed(seed, steps) for seed in (5, 6) for steps in (0, 1, 2)}) == 6
