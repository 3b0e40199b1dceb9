"""Random streams: the same for a key everywhere, different for different keys, and truly distributed."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from harness.core import rng


def _sha256(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


def test_streams_are_pinned_to_the_bit() -> None:
    """Catches: a change of the generator, of the hashing of keys, or a libm function that rounds differently
    on some machine, any of which would silently change every past result."""
    assert _sha256(rng.uniform(1000, "pin", 7)) == "35ed0414e83015af"
    assert _sha256(rng.normal(1000, "pin", 7)) == "8418fd26b8f2d1d1"
    assert _sha256(rng.permutation(1000, "pin", 7)) == "83d14dfbcf784372"


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (("order", 1, 23), ("order", 12, 3)),
        (("order", 1), ("order", "1")),
        (("ab", "c"), ("a", "bc")),
        (("x", 0), ("x",)),
    ],
)
def test_different_keys_have_different_streams(a: tuple[int | str, ...], b: tuple[int | str, ...]) -> None:
    """Catches: keys that run together when they are hashed, so that two uses share their numbers."""
    assert not np.array_equal(rng.uniform(8, *a), rng.uniform(8, *b))


def test_numpy_integers_name_the_same_stream() -> None:
    """Catches: a seed out of an array giving another stream than the same seed out of a configuration."""
    assert np.array_equal(rng.uniform(8, "s", np.int64(5)), rng.uniform(8, "s", 5))


def test_uniform_fills_the_interval_evenly() -> None:
    """Catches: a wrong shift or scale of the raw bits (values outside [0, 1), or half of it empty)."""
    values = rng.uniform((200, 500), "even")
    assert values.shape == (200, 500) and values.dtype == np.float64
    assert values.min() >= 0.0 and values.max() < 1.0
    counts = np.histogram(values, bins=20, range=(0.0, 1.0))[0]
    assert np.abs(counts - 5000).max() < 6 * np.sqrt(5000)


def test_normal_is_box_muller_of_its_uniform_streams() -> None:
    """Catches: a series with a wrong or missing term, against NumPy's logarithm and sine."""
    radius, turn = rng.uniform(50_000, "n", "radius"), rng.uniform(50_000, "n", "angle")
    expected = np.sqrt(-2.0 * np.log1p(-radius)) * np.sin(2 * np.pi * (0.25 - np.abs(turn - 0.5)))
    np.testing.assert_allclose(rng.normal(50_000, "n"), expected, rtol=1e-13, atol=1e-15)


def test_normal_has_the_moments_and_tails_of_the_normal_distribution() -> None:
    """Catches: a wrong transform (variance 2, one-sided, cut tails), whatever its formula."""
    values = rng.normal(200_000, "moments")
    moments = [np.mean(values**k) for k in (1, 2, 3, 4)]
    np.testing.assert_allclose(moments, [0.0, 1.0, 0.0, 3.0], atol=0.06)
    assert abs(np.mean(np.abs(values) > 2.0) - 0.0455) < 0.003


def test_permutation_holds_every_number_once() -> None:
    """Catches: rows trained on twice or never."""
    order = rng.permutation(997, "p")
    assert order.dtype == np.int64
    assert np.array_equal(np.sort(order), np.arange(997))
    assert not np.array_equal(order, rng.permutation(997, "q"))
