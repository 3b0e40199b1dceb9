"""Random numbers that are the same on every machine, for every version of NumPy.

Splits, weights and the order of batches are part of a run's identity, so they must not change with NumPy's
version. NumPy guarantees the bit streams of `PCG64(SeedSequence(...)).random_raw` permanently, but not the
methods of `Generator` (NEP 19). Hence only raw bits come from NumPy, and all derived values use operations
that IEEE 754 rounds correctly: + - * / and the square root. The C library's logarithm and sine, which differ
in the last bit between machines, are replaced by series of such operations.

Every use has its own stream, named by a key such as `("order", seed, epoch)`: drawing more numbers in one
place never shifts the numbers in another.
"""

from __future__ import annotations

import hashlib
import json
import operator
from math import factorial

import numpy as np
from numpy.typing import NDArray

Size = int | tuple[int, ...]
Float64 = NDArray[np.float64]

_LN2 = 0.6931471805599453
_PI = 3.141592653589793
_SQRT_HALF = 0.7071067811865476
# ln m = 2 s (1 + s²/3 + s⁴/5 + ...), s = (m - 1) / (m + 1): |s| < 0.172 makes 12 terms exact to 1e-19.
_LOG_TERMS = [1.0 / (2 * k + 1) for k in range(12)]
# The Taylor series of the sine: for |x| <= pi/2, 13 terms are exact to 1e-20.
_SINE_TERMS = [(-1.0) ** k / factorial(2 * k + 1) for k in range(13)]


def uniform(size: Size, *key: int | str) -> Float64:
    """Draw float64 values in [0, 1) on a grid of 2**-53, from the stream named `key`."""
    return (_raw(size, key) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def normal(size: Size, *key: int | str) -> Float64:
    """Draw float64 values of the standard normal distribution, from the stream named `key`.

    Uses the transform of Box & Muller (1958), one value from each pair of uniform values; |value| <= 8.6.
    """
    radius = np.sqrt(-2.0 * _log(1.0 - uniform(size, *key, "radius")))
    return radius * _sine_of_turn(uniform(size, *key, "angle"))


def permutation(n: int, *key: int | str) -> NDArray[np.int64]:
    """Return the numbers 0 ... n-1 in an order drawn from the stream named `key`, int64 [n].

    The order sorts one raw 64-bit number per element; equal numbers (n² / 2⁶⁵ of all cases) keep their order.
    """
    return np.argsort(_raw(n, key), kind="stable").astype(np.int64)


def _raw(size: Size, key: tuple[int | str, ...]) -> NDArray[np.uint64]:
    # JSON distinguishes 1 and "1", ("ab", "c") and ("a", "bc"); index() converts NumPy's integers to
    # Python's.
    text = json.dumps([part if isinstance(part, str) else operator.index(part) for part in key])
    entropy = int.from_bytes(hashlib.sha256(text.encode()).digest(), "little")
    bits = np.random.PCG64(np.random.SeedSequence(entropy))
    count = int(np.prod(size, dtype=np.int64))
    return bits.random_raw(count).reshape(size)


def _series(terms: list[float], x: Float64) -> Float64:
    total = np.full_like(x, terms[-1])
    for term in reversed(terms[:-1]):
        total = total * x + term
    return total


def _log(x: Float64) -> Float64:
    """Return the natural logarithm of positive values."""
    mantissa, exponent = np.frexp(x)
    small = mantissa < _SQRT_HALF
    mantissa = np.where(small, 2.0 * mantissa, mantissa)
    exponent = np.where(small, exponent - 1, exponent).astype(np.float64)
    s = (mantissa - 1.0) / (mantissa + 1.0)
    return exponent * _LN2 + 2.0 * s * _series(_LOG_TERMS, s * s)


def _sine_of_turn(turn: Float64) -> Float64:
    """Return sin(2 pi (1/4 - |turn - 1/2|)): for turn in [0, 1), the distribution of a sine on a full
    circle."""
    x = 2.0 * _PI * (0.25 - np.abs(turn - 0.5))
    return x * _series(_SINE_TERMS, x * x)
