"""Statistics of timings, on synthetic times with a true ratio; disturbances; and the peak of memory."""

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

    A disturbance (a factor of up to 4) affects both sides of a pair. Each time also has noise of 3 % of its
    own, and one in fifty is five times too long.
    """
    random = np.random.default_rng(seed)
    disturbance = np.exp(random.uniform(0.0, math.log(4.0), pairs))
    own = np.exp(random.normal(0.0, 0.03, (2, pairs))) * np.where(random.random((2, pairs)) < 0.02, 5.0, 1.0)
    return (0.02 * truth * disturbance * own[0]).tolist(), (0.02 * disturbance * own[1]).tolist()


@pytest.mark.parametrize("truth", [1.0, 1.1, 0.25], ids=["A/A", "10 % slower", "four times as fast"])
def test_the_interval_contains_the_true_ratio_in_95_percent_of_cases(truth: float) -> None:
    """Catches: b / a instead of a / b, unpaired resampling (the disturbance is then fifty times the effect),
    the wrong quantiles, an interval of single pairs instead of their median."""
    covered = 0
    for seed in range(EXPERIMENTS):
        a, b = _times(truth, 40, seed)
        interval = statistics.ratio(a, b, resamples=400)
        assert interval.pairs == 40
        assert interval.low <= interval.estimate <= interval.high < 1.1 * interval.low
        covered += interval.low <= truth <= interval.high
    # 95 % of 200 is 190, with a standard deviation of 3
    assert 180 <= covered <= 199


def test_a_planted_slowdown_is_detected_without_false_alarms() -> None:
    """Catches: an interval so wide that it never shows a difference, or so narrow that it always does."""
    intervals = {
        truth: [statistics.ratio(*_times(truth, 40, seed), resamples=400) for seed in range(EXPERIMENTS)]
        for truth in (1.0, 1.1)
    }
    assert all(interval.low > 1.0 for interval in intervals[1.1])
    false_alarms = sum(not interval.low <= 1.0 <= interval.high for interval in intervals[1.0])
    assert false_alarms <= EXPERIMENTS // 10


def test_the_interval_narrows_with_the_root_of_the_number_of_pairs() -> None:
    """Catches: resampling fewer or more pairs than there are."""

    def width(pairs: int) -> float:
        intervals = [statistics.ratio(*_times(1.0, pairs, seed), resamples=400) for seed in range(30)]
        return float(np.median([interval.high - interval.low for interval in intervals]))

    assert width(25) / width(400) == pytest.approx(4.0, rel=0.25)


def test_the_ratio_is_the_same_for_the_same_times() -> None:
    """Catches: an interval that differs between two calls with the same times."""
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
    """Catches: a peak in the wrong unit, a run that is charged with the memory of an earlier run of the same
    worker, and a failed reset that is not reported."""
    command = [sys.executable, "-c", MEMORY]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    before, after, reset = map(float, done.stdout.split())
    assert before > 200.0
    assert after < before - 150.0 if reset else after >= before


def test_a_timing_is_disturbed_if_wall_and_cpu_time_differ() -> None:
    """Catches: a run that shared its core and counts as clean, a GPU's run that counts as disturbed for
    waiting, a false alarm for several threads (more CPU than wall time), a system that does not report stolen
    time."""
    assert timing.disturbances(1.0, 0.97, 0.001) == []
    assert timing.disturbances(1.0, 3.6, None) == []
    (waited,) = timing.disturbances(2.0, 1.5, None)
    assert "25%" in waited
    assert timing.disturbances(2.0, 0.1, 0.0, computes=False) == []
    assert len(timing.disturbances(1.0, 0.5, 0.3)) == 2
