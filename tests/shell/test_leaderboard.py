"""The leaderboard: which runs share a row, the contents of a row, and that all of it is printed."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.core.config.run_config import RunConfig
from harness.core.runs.run_folder import RunFolder
from harness.core.validation import ConfigError
from harness.shell.reports.leaderboard import print_leaderboard, rows, rows_as_json
from harness.shell.runs.records import Outcome
from harness.shell.studies.members import load_outcomes
from tests.support.compose import composing, config_of


@pytest.fixture(scope="module")
def base() -> Iterator[RunConfig]:
    with composing():
        yield config_of("data=iris")


@pytest.fixture(scope="module")
def diabetes() -> Iterator[RunConfig]:
    with composing():
        yield config_of("data=diabetes")


def outcome(config: RunConfig, accuracy: float = 0.5, step_ms: float = 1.0, **metrics: float) -> Outcome:
    """A finished run with these numbers."""
    values = {
        "test/accuracy": accuracy,
        "speed/step_ms": step_ms,
        "speed/samples_per_second": 32_000 / step_ms,
        "time/compile_s": 0.0,
        "memory/peak_mb": 300.0,
    }
    return Outcome(config, {"status": "finished", "metrics": values | metrics}, skipped=False)


def failure(config: RunConfig, status: str = "failed") -> Outcome:
    error = {"type": "exit", "message": "exited [bold]with 3[/bold]"}
    return Outcome(config, {"status": status, "metrics": {}, "error": error}, skipped=False)


def test_seeds_and_repeats_share_a_row_with_mean_and_sample_deviation(base: RunConfig) -> None:
    """Catches: the deviation of a population (0.1633) instead of a sample, a mean of times instead of the
    median, rows by seed, and a compile time hidden by the zeros of cached programs."""
    runs = [
        outcome(replace(base, seed=0), 0.5, 1.0, **{"time/compile_s": 2.5}),
        outcome(replace(base, seed=1), 0.7, 9.0),
        outcome(replace(base, seed=2, repeat=1, study="other"), 0.9, 2.0),
    ]
    (row,) = rows(runs)
    assert row.axes == {"model": "fnn", "data": "iris", "framework": "torch", "execution": "eager"}
    assert (row.runs, row.failed, row.score) == (3, 0, "test/accuracy")
    assert row.score_mean == pytest.approx(0.7)
    assert row.score_deviation == pytest.approx(0.2)  # sqrt((0.04 + 0 + 0.04) / 2)
    assert (row.step_ms, row.samples_per_second, row.compile_s) == (2.0, 16_000.0, 2.5)


def test_every_other_varying_key_is_an_axis(base: RunConfig) -> None:
    """Catches: runs with different learning rates averaged, and columns for keys that do not vary."""
    fast = replace(base, optimizer=replace(base.optimizer, learning_rate=0.01))
    table = rows([outcome(base, 0.5), outcome(fast, 0.9)])
    assert {row.axes["optimizer.learning_rate"]: row.score_mean for row in table} == {
        "0.001": 0.5,
        "0.01": 0.9,
    }
    assert set(table[0].axes) == {"model", "data", "framework", "execution", "optimizer.learning_rate"}


def test_a_key_that_follows_from_its_section_is_not_an_axis(base: RunConfig) -> None:
    """Catches: five columns of Adam's and SGD's numbers where the column `optimizer` is enough."""
    with composing():
        sgd = config_of("data=iris", "optimizer=sgd")
    table = rows([outcome(base), outcome(sgd)])
    assert set(table[0].axes) == {"model", "data", "framework", "execution", "optimizer"}


def test_a_key_that_an_experiment_sets_for_a_model_is_not_an_axis(base: RunConfig) -> None:
    """Catches: a column of epochs that the model determines; one that is missing although runs of a model
    differ, or although the threads differ."""
    with composing():
        rnn = config_of("data=iris", "model=rnn", "train.epochs=7", "optimizer.learning_rate=0.1")
    always = {"model", "data", "framework", "execution"}
    assert set(rows([outcome(base), outcome(rnn)])[0].axes) == always
    longer = replace(base, train=replace(base.train, epochs=99))
    assert set(rows([outcome(base), outcome(rnn), outcome(longer)])[0].axes) == {*always, "train.epochs"}
    busy = replace(rnn, threads=8)
    assert set(rows([outcome(base), outcome(busy)])[0].axes) == {*always, "threads"}


def test_failed_runs_are_counted_and_change_no_number(base: RunConfig) -> None:
    """Catches: a failed run that is not counted, that counts as accuracy 0, or that breaks the table; and a
    missing row because all of its runs failed."""
    slow = replace(base, execution="compiled")
    runs = [outcome(base, 0.8), failure(replace(base, seed=1)), failure(slow, "diverged")]
    eager, compiled = rows(runs)
    assert (eager.runs, eager.failed, eager.score_mean) == (2, 1, 0.8)
    assert math.isnan(eager.score_deviation)
    assert (compiled.runs, compiled.failed) == (1, 1)
    assert math.isnan(compiled.score_mean) and math.isnan(compiled.step_ms)


def test_rows_are_sorted_by_model_data_and_speed(base: RunConfig, diabetes: RunConfig) -> None:
    """Catches: rows in the order of the runs, which changes after a resume; NaN first."""
    runs = [
        outcome(base, step_ms=5.0),
        failure(replace(base, threads=2)),
        outcome(replace(base, precision="float64"), step_ms=1.0),
        outcome(diabetes, **{"test/r2": 0.4}),
    ]
    del runs[3].result["metrics"]["test/accuracy"]
    order = [(row.axes["data"], row.step_ms) for row in rows(runs)]
    assert order[:3] == [("diabetes", 1.0), ("iris", 1.0), ("iris", 5.0)]
    assert order[3][0] == "iris" and math.isnan(order[3][1])
    assert rows(runs)[0].score == "test/r2"


def test_json_is_json(base: RunConfig) -> None:
    """Catches: NaN, which is not valid JSON, for an unknown value."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not valid JSON")

    text = rows_as_json([outcome(base, 0.8), failure(replace(base, execution="compiled"))])
    eager, compiled = json.loads(text, parse_constant=refuse)
    assert eager["score_mean"] == 0.8 and eager["score_deviation"] is None
    assert compiled["step_ms"] is None and compiled["failed"] == 1
    assert eager["axes"]["framework"] == "torch"


def printed(capsys: pytest.CaptureFixture[str], runs: list[Outcome]) -> list[str]:
    print_leaderboard(runs)
    return capsys.readouterr().out.splitlines()


def test_the_table_has_each_row_on_one_line_in_a_file(
    base: RunConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches: cells cut to the 80 columns that a pipe does not have."""
    runs = [outcome(replace(base, seed=seed), 0.5 + 0.2 * seed) for seed in range(3)]
    title, header, line, end = printed(capsys, [*runs, outcome(replace(base, execution="compiled"), 0.25)])[
        :4
    ]
    assert title.strip() == "Leaderboard"
    assert header.split()[:5] == ["model", "data", "framework", "execution", "test/accuracy"]
    assert line.split()[:7] == ["fnn", "iris", "torch", "eager", "0.700", "±", "0.200"]
    assert end.split()[4] == "0.250"


def test_scores_of_several_kinds_are_named_and_networks_separated(
    base: RunConfig, diabetes: RunConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches: an R² of 0.4 in a column of accuracies, and eighteen rows without a break."""
    runs = [outcome(base, 0.9), outcome(replace(base, threads=2), 0.8), outcome(diabetes, **{"test/r2": 0.4})]
    del runs[2].result["metrics"]["test/accuracy"]
    _, header, first, gap, *others = printed(capsys, runs)[:6]
    assert "test score" in header
    assert "r2 0.400" in first and not gap.strip()
    assert {"accuracy 0.900", "accuracy 0.800"} == {
        match.group() for line in others if (match := re.search(r"accuracy 0\.\d+", line))
    }


@pytest.mark.parametrize("columns", [80, 100, 160])
def test_the_table_fits_the_terminal_and_loses_no_cell(
    base: RunConfig,
    diabetes: RunConfig,
    columns: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Catches: names cut to `fr…` or numbers cut at the right edge of a narrow terminal."""
    monkeypatch.setenv("FORCE_COLOR", "1")  # makes a terminal of the captured output
    monkeypatch.setenv("COLUMNS", str(columns))
    wide = {"memory/peak_mb": 12_345.0, "speed/share_of_limit": 0.123}
    runs = [
        outcome(replace(config, threads=threads, seed=seed), 0.9, 123.456, **wide)
        for config in (base, diabetes)
        for threads in (1, 16)
        for seed in (0, 1)
    ]
    text = re.sub(r"\x1b\[[\d;]*m", "", "\n".join(printed(capsys, runs)))
    lines = text.splitlines()
    assert max(map(len, lines)) <= columns
    assert "…" not in text
    assert text.count("12,345") == text.count("123.456") == text.count("0.900 ± 0.000") == 4
    assert text.count("12.3%") == (4 if columns > 80 else 0)
    assert {"diabetes", "iris", "fnn", "16", "eager", "execution", "threads", "compile", "runs"} <= set(
        text.split()
    )


def test_failures_are_printed_verbatim_below_the_table(
    base: RunConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches: a message that rich reads as markup, and one without its run."""
    lines = printed(capsys, [outcome(base), failure(replace(base, seed=1))])
    assert "failed: fnn torch iris s1: exited [bold]with 3[/bold]" in lines
    assert any(line.rstrip().endswith("2 (1 failed)") for line in lines)


def test_the_line_that_opens_the_ui_names_the_results_folder(
    base: RunConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches: a command that opens another store when pasted, or breaks at a space."""
    assert printed(capsys, [outcome(base)])[-1].strip() == "Browse and compare: evenbench ui"
    elsewhere = replace(base, results_dir="/tmp/my results")
    last = printed(capsys, [outcome(elsewhere)])[-1].strip()
    assert last == "Browse and compare: evenbench ui --results-dir '/tmp/my results'"


def write(results: Path, name: str, config: RunConfig, result: dict[str, Any] | None) -> None:
    folder = RunFolder(results / "runs" / name)
    folder.write_job({"study": config.study, "config": config.to_plain()})
    if result is not None:
        folder.write_result(result)


def test_the_runs_of_a_study_are_read_back_from_their_folders(base: RunConfig, tmp_path: Path) -> None:
    """Catches: runs of other studies in a study's table, and a run in it that has not ended."""
    mine = replace(base, study="mine")
    write(tmp_path, "a", mine, outcome(mine, 0.75).result)
    write(tmp_path, "b", base, outcome(base).result)
    write(tmp_path, "c", mine, None)
    assert [o.config for o in load_outcomes(tmp_path, "mine")] == [mine]
    assert len(load_outcomes(tmp_path, None)) == 2


def test_a_study_or_a_folder_without_runs_is_a_wrong_request(base: RunConfig, tmp_path: Path) -> None:
    """Catches: an empty table for a misspelt name."""
    with pytest.raises(ConfigError, match="contains no finished or failed run"):
        load_outcomes(tmp_path, None)
    write(tmp_path, "a", base, outcome(base).result)
    with pytest.raises(ConfigError, match="'defualt' has no runs; did you mean 'default'"):
        load_outcomes(tmp_path, "defualt")


def test_a_disturbed_timing_is_marked(base: RunConfig, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches: a table without a mark at a time measured on a busy machine."""
    runs = [outcome(replace(base, seed=seed)) for seed in range(3)]
    runs[1].result["timing"] = {"disturbed": ["it had no core for 40% of its time"]}
    assert [row.disturbed for row in rows(runs)] == [1]
    print_leaderboard(runs)
    printed = capsys.readouterr().out
    assert "1.000*" in printed and "* other work disturbed the timing of 1 of 3 runs" in printed
    print_leaderboard(runs[:1])
    assert "*" not in capsys.readouterr().out
