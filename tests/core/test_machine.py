"""The statistics of timings, on synthetic times whose truth is known; and the peak of memory."""

from __future__ import annotations

import math
import subprocess
import sys
from statistics import quantiles

import numpy as np
import pytest

from harness.core.machine import statistics, timing

EXPERIMENTS = 200


def _times(truth: float, pairs: int, seed: int) -> tuple[list[float], list[float]]:
    """Paired times of a disturbed machine, whose true ratio is `truth`.

    What disturbs a pair (a factor of up to 4) disturbs both sides of it; 3 % of their own come on top, and
    one time in fifty is five times as long as it should be.
    """
    random = np.random.default_rng(seed)
    disturbed = np.exp(random.uniform(0.0, math.log(4.0), pairs))
    own = np.exp(random.normal(0.0, 0.03, (2, pairs))) * np.where(random.random((2, pairs)) < 0.02, 5.0, 1.0)
    return (0.02 * truth * disturbed * own[0]).tolist(), (0.02 * disturbed * own[1]).tolist()


@pytest.mark.parametrize("truth", [1.0, 1.1, 0.25], ids=["A/A", "10 % slower", "four times as fast"])
def test_the_interval_holds_the_true_ratio_as_often_as_it_says(truth: float) -> None:
    """Catches: a / b turned round, pairs torn apart (the disturbance is then fifty times the effect), the
    wrong quantiles, an interval of single pairs instead of their median."""
    held = 0
    for seed in range(EXPERIMENTS):
        a, b = _times(truth, 40, seed)
        found = statistics.ratio(a, b, resamples=400)
        assert found.pairs == 40
        assert found.low <= found.estimate <= found.high < 1.1 * found.low
        held += found.low <= truth <= found.high
    # 95 % of 200 is 190, with a standard deviation of 3
    assert 180 <= held <= 199


def test_a_planted_slowdown_is_found_and_none_is_made_up() -> None:
    """Catches: an interval so wide that it never shows a difference, or so narrow that it always does."""
    intervals = {
        truth: [statistics.ratio(*_times(truth, 40, seed), resamples=400) for seed in range(EXPERIMENTS)]
        for truth in (1.0, 1.1)
    }
    assert all(found.low > 1.0 for found in intervals[1.1])
    made_up = sum(not found.low <= 1.0 <= found.high for found in intervals[1.0])
    assert made_up <= EXPERIMENTS // 10


def test_the_interval_narrows_with_the_root_of_the_number_of_pairs() -> None:
    """Catches: resampling fewer or more pairs than there are."""

    def width(pairs: int) -> float:
        found = [statistics.ratio(*_times(1.0, pairs, seed), resamples=400) for seed in range(30)]
        return float(np.median([each.high - each.low for each in found]))

    assert width(25) / width(400) == pytest.approx(4.0, rel=0.25)


def test_the_ratio_is_the_same_for_the_same_times() -> None:
    """Catches: an interval that is drawn anew each time somebody looks."""
    a, b = _times(1.1, 300, 0)
    assert statistics.ratio(a, b, resamples=40) == statistics.ratio(a, b, resamples=40)


def test_median_and_quartiles() -> None:
    """Catches: the mean for the median, unsorted values, another kind of quantile, a crash without values."""
    values = [4.0, 1.0, 100.0, 2.0, 3.0, 7.0]
    assert statistics.median(values) == 3.5
    assert statistics.quartiles(values) == pytest.approx(quantiles(values, n=4, method="inclusive"))
    assert math.isnan(statistics.median([]))
    assert all(math.isnan(value) for value in statistics.quartiles([]))


MEMORY = """
import numpy as np
from harness.core.machine import timing
def fill():
    big = np.ones(200_000_000 // 8)  # gone when this returns
    return big[0]
fill()
before = timing.peak_memory_mb()
reset = timing.reset_peak_memory()
print(before, timing.peak_memory_mb(), int(reset))
"""


def test_a_reset_forgets_the_peak_of_the_run_before() -> None:
    """Catches: a peak in the wrong unit, and a run that is charged with the memory of another one before it
    in the same worker. Where the system can't reset the peak, that has to be said."""
    command = [sys.executable, "-c", MEMORY]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    before, after, reset = map(float, done.stdout.split())
    assert before > 200.0
    assert after < before - 150.0 if reset else after >= before


def test_a_timing_is_disturbed_where_wall_and_cpu_time_part() -> None:
    """Catches: a run that shared its core and passes for a clean one, a GPU's run that is blamed for waiting,
    several threads (more CPU than wall time) that hide nothing, a system that says nothing of stolen time."""
    assert timing.disturbances(1.0, 0.97, 0.001) == []
    assert timing.disturbances(1.0, 3.6, None) == []
    (waited,) = timing.disturbances(2.0, 1.5, None)
    assert "25%" in waited
    assert timing.disturbances(2.0, 0.1, 0.0, computes=False) == []
    assert len(timing.disturbances(1.0, 0.5, 0.3)) == 2
