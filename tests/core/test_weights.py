"""Canonical weights: the same for a seed on every machine, distributed as in the papers, saved exactly."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import numpy as np
import pytest

from harness.core.network import Param, initialisers
from harness.core.storage import npz
from harness.core.training import weights

NETWORK = {
    "0.kernel": Param((64, 32), "glorot_uniform", 64, 32),
    "0.bias": Param((32,), "zeros"),
    "1.scale": Param((32,), "ones"),
    "2.kernel": Param((32, 16), "he_normal", 32, 16),
    "3.kernel": Param((16, 10), "glorot_normal", 16, 10),
    "4.kernel": Param((10, 10), "he_uniform", 10, 10),
}


@pytest.mark.parametrize(
    ("precision", "pin"), [("float32", "18225c50e9e8d876"), ("float64", "40c2d7537ae2317d")]
)
def test_the_weights_of_a_seed_are_pinned_to_the_bit(precision: str, pin: str) -> None:
    """Catches: weights that change with a machine, a version of NumPy, or an edit of an initialiser."""
    digest = hashlib.sha256()
    for name, array in initialisers.initialise(NETWORK, 42, precision).items():
        digest.update(f"{name} {array.shape} {array.dtype.str}".encode() + array.tobytes())
    assert digest.hexdigest()[:16] == pin


@pytest.mark.parametrize(
    ("init", "variance"),
    [
        ("glorot_uniform", 2 / (300 + 500)),
        ("glorot_normal", 2 / (300 + 500)),
        ("he_uniform", 2 / 300),
        ("he_normal", 2 / 300),
    ],
)
def test_initialisers_have_the_variance_of_their_papers(init: str, variance: float) -> None:
    """Catches: fan_out for fan_in, the limit of a uniform taken for its deviation, a factor of two."""
    drawn = initialisers.initialise({"k": Param((300, 500), init, 300, 500)}, 0, "float64")["k"]
    assert drawn.var() == pytest.approx(variance, rel=0.02)
    assert abs(drawn.mean()) < 5 * math.sqrt(variance / drawn.size)
    limit = math.sqrt(3 * variance)
    if init.endswith("uniform"):
        assert 0.999 * limit < np.abs(drawn).max() <= limit
    else:
        assert np.abs(drawn).max() > 3.5 * math.sqrt(variance)


def test_every_initialiser_is_covered_here() -> None:
    """Catches: an initialiser that was added without being pinned above."""
    here = {"forget_gate_ones", "uniform_0.05"}
    assert {param.init for param in NETWORK.values()} | here == set(initialisers.INITIALISERS)


def test_initialisers_of_recurrent_layers_and_embeddings() -> None:
    """Catches: a forget gate elsewhere than in the second of four blocks; a table that is not within 0.05."""
    params = {"bias": Param((8,), "forget_gate_ones"), "table": Param((50, 40), "uniform_0.05")}
    drawn = initialisers.initialise(params, 0, "float64")
    assert drawn["bias"].tolist() == [0, 0, 1, 1, 0, 0, 0, 0]
    assert 0.0499 < np.abs(drawn["table"]).max() <= 0.05
    assert abs(drawn["table"].mean()) < 0.003


def test_another_layer_leaves_the_rest_as_it_was() -> None:
    """Catches: one stream for all parameters, so that depth or order changes every later layer."""
    more = {"9.kernel": Param((5, 5), "he_normal", 5, 5)} | dict(reversed(NETWORK.items()))
    few, many = initialisers.initialise(NETWORK, 3, "float64"), initialisers.initialise(more, 3, "float64")
    assert all(np.array_equal(few[name], many[name]) for name in few)


def test_seeds_and_names_give_different_weights() -> None:
    """Catches: layers of one shape that start alike, or a seed that is ignored."""
    twins = {name: Param((4, 4), "he_normal", 4, 4) for name in ("a", "b")}
    first, second = initialisers.initialise(twins, 0, "float64"), initialisers.initialise(twins, 1, "float64")
    assert not np.array_equal(first["a"], first["b"])
    assert not np.array_equal(first["a"], second["a"])


def test_float32_weights_are_the_float64_ones_rounded() -> None:
    """Catches: precisions that start from different points, so that their results can't be compared."""
    low, high = initialisers.initialise(NETWORK, 5, "float32"), initialisers.initialise(NETWORK, 5, "float64")
    for name in NETWORK:
        assert low[name].dtype == np.float32 and high[name].dtype == np.float64
        assert np.array_equal(low[name], high[name].astype(np.float32))


def test_a_saved_file_gives_back_the_same_weights_and_leaves_nothing_else(tmp_path: Path) -> None:
    """Catches: names with dots mangled, a dtype lost, temporary files left behind."""
    initial = initialisers.initialise(NETWORK, 1, "float32")
    npz.save(tmp_path / "weights.npz", initial)
    read = npz.load(tmp_path / "weights.npz")
    assert list(read) == list(initial)
    assert all(np.array_equal(read[n], initial[n]) and read[n].dtype == initial[n].dtype for n in initial)
    assert [file.name for file in tmp_path.iterdir()] == ["weights.npz"]


def test_a_failed_save_keeps_the_old_file(tmp_path: Path) -> None:
    """Catches: writing in place, so that a run that dies while saving loses the weights it had."""
    path = tmp_path / "weights.npz"
    npz.save(path, {"a": np.ones(3)})
    with pytest.raises(ValueError, match="Object arrays"):
        npz.save(path, {"a": np.zeros(3), "b": np.array([object()])})
    assert np.array_equal(npz.load(path)["a"], np.ones(3))
    assert [file.name for file in tmp_path.iterdir()] == ["weights.npz"]


def test_compare_names_the_worst_parameter() -> None:
    """Catches: a mean for a maximum, a signed difference, or a deviation put down to the wrong parameter."""
    a = {"x": np.zeros((2, 2)), "y": np.zeros(3), "empty": np.zeros((0, 2))}
    b = {"x": np.array([[0.0, 1e-3], [0.0, 0.0]]), "y": np.array([0.0, -0.5, 0.0]), "empty": np.zeros((0, 2))}
    deviation = weights.compare(a, b)
    assert (deviation.worst, deviation.largest, deviation.mismatches) == ("y", 0.5, ())
    alone = {name: weights.compare({name: a[name]}, {name: b[name]}).largest for name in a}
    assert alone == {"x": 1e-3, "y": 0.5, "empty": 0.0}
    assert weights.compare(a, a).largest == 0.0


def test_weights_that_cannot_be_compared_never_pass() -> None:
    """Catches: a gate that is met because a parameter is missing, has another shape, or is nan."""
    a = {"x": np.zeros(2), "y": np.zeros(3)}
    assert weights.compare(a, {"x": np.zeros(2)}).largest == math.inf
    assert weights.compare({"x": np.zeros(2)}, a).mismatches == ("y is only in the second",)
    broadcastable = weights.compare(a, {"x": np.zeros((2, 1)), "y": np.zeros(3)})
    assert broadcastable.largest == math.inf and "(2, 1)" in broadcastable.mismatches[0]
    lost = {"x": np.array([np.nan, 0.0]), "y": np.zeros(3)}
    assert weights.compare(a, lost).largest == math.inf
    assert weights.compare(lost, lost).largest == math.inf
    assert weights.compare(a, lost).worst == "x"
