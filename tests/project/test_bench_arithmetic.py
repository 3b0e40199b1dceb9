"""The decisions, statistics and tables of the benchmarks (tests/bench), without their measurements."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path

import pytest

from tests.bench import overhead
from tests.bench.comparison import Child, _alone
from tests.bench.overhead import over_rounds
from tests.bench.report import RefusedError, Report, Table, with_rows
from tests.bench.write_docs import MEASURED, Part, _with_rows


@pytest.mark.parametrize(
    ("before_ns", "after_ns", "alone"),
    [
        ({1: 50, 2: 50}, {1: 1050, 2: 60}, True),
        ({1: 50, 2: 50}, {1: 850, 2: 250}, False),
        ({1: 50}, {1: 850, 2: 200}, False),
        ({1: 5000, 2: 0}, {1: 5100, 2: 100}, False),
        ({}, {}, False),
    ],
    ids=["one", "two", "late", "two that worked as much", "unknown"],
)
def test_sides_share_a_core_only_if_each_computes_in_one_thread(
    before_ns: dict[int, int], after_ns: dict[int, int], alone: bool
) -> None:
    """Catches: a second thread that is missed because it started late or the first had worked before. The
    scheduler would then decide which side wins."""
    assert _alone(before_ns, after_ns) == alone


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system does not move processes")
def test_a_side_s_work_is_counted_and_its_core_chosen(tmp_path: Path) -> None:
    """Catches: work in a unit other than ns, or of another process; a side that stays on all cores."""
    start = time.perf_counter()
    child = Child("matrix_limit", ["1"], dict(os.environ), tmp_path / "log")
    try:
        while not (worked_s := sum(child.worked_ns().values()) / 1e9) > 0.05:
            time.sleep(0.01)
        assert worked_s < (time.perf_counter() - start) * (os.cpu_count() or 1)
        child.pin(core := max(os.sched_getaffinity(0)))
        assert os.sched_getaffinity(child.pid) == {core}
    finally:
        child.close()


def test_an_interval_over_rounds_is_student_s() -> None:
    """Catches: the normal distribution's quantile for so few rounds (half the width), a mean of ratios
    instead of their logarithms, the deviation of a population."""
    interval = over_rounds([1.0, 1.1, 1.21])
    half = 4.3026527 * math.log(1.1) / math.sqrt(3)
    assert interval.pairs == 3
    assert math.isclose(interval.estimate, 1.1)
    assert math.isclose(interval.low, 1.1 * math.exp(-half), rel_tol=1e-6)
    assert math.isclose(interval.high, 1.1 * math.exp(half), rel_tol=1e-6)


COLUMNS = ("model", "execution", "ratio")
PAGE = Table("Costs", COLUMNS, (("fnn", "eager", "1.05"), ("rnn", "eager", "1.01")))
OTHER = Table("Noise", COLUMNS, (("fnn", "eager", "1.00"),))


def test_a_new_measurement_replaces_the_row() -> None:
    """Catches: a row that is lost, changed, duplicated or in another table; lost text after a table; columns
    that are no longer aligned."""
    page = f"Before.\n\n{PAGE.markdown()}\n\n{OTHER.markdown()}\n\nAfter.\n"
    fresh = Table("Costs", COLUMNS, (("fnn", "eager", "1.004 [0.9, 1.1]"),))
    expected = Table("Costs", COLUMNS, (*fresh.rows, PAGE.rows[1]))
    changed = with_rows(page, fresh, keys=2)
    assert changed == f"Before.\n\n{expected.markdown()}\n\n{OTHER.markdown()}\n\nAfter.\n"


def test_a_section_notes_each_new_measurement_once() -> None:
    """Catches: an outdated note on a row that was measured again; a row's note that is lost with another's;
    lost text."""
    columns = ("model", "framework", "execution", "ratio")
    rows = ("fnn", "torch", "eager", "1.05"), ("rnn", "torch", "eager", "1.01")
    page = Table("Costs", columns, rows).markdown()
    old = ["Rows of fnn eager again, in 3 rounds.", "Rows of rnn eager again, in 4 rounds.", page]
    section = "\n\n".join([f"## Costs\n\n{MEASURED}on a day.", *old, "After.\n"])
    part = Part("Costs", overhead, lambda: Report({}, (Table("Costs", columns, rows[:1]),)))
    changed, _ = _with_rows(part, section, "eager fnn", 16)
    notes = [line.partition(" rounds")[0] for line in changed.splitlines() if line.startswith("Rows of")]
    assert notes == ["Rows of eager fnn again, in 16", "Rows of rnn eager again, in 4"]
    assert f"{MEASURED}on a day.\n\nRows" in changed and changed.endswith(f"{page}\n\nAfter.\n")
    assert "rnn" not in _with_rows(part, section, "eager", 16)[0].partition("|")[0]


@pytest.mark.parametrize(
    "fresh",
    [
        Table("Speeds", COLUMNS, PAGE.rows),
        Table("Costs", (*COLUMNS[:2], "cores"), PAGE.rows),
        Table("Costs", COLUMNS, (("cnn", "eager", "1.00"),)),
    ],
    ids=["table", "columns", "row"],
)
def test_a_row_that_is_not_on_the_page_is_refused(fresh: Table) -> None:
    """Catches: a row that is measured for minutes and silently dropped, or written below other columns."""
    with pytest.raises(RefusedError, match=fresh.title):
        with_rows(PAGE.markdown(), fresh, keys=2)
