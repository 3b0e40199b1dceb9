"""The equivalence test: its numbers, its verdicts, and the command that trains and compares."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from harness.core.config.run_config import RunConfig
from harness.shell.certificates.equivalence import compare
from harness.shell.commands.accuracy import evaluate, print_reports
from harness.shell.runs.records import Outcome
from tests.support.compose import composing, config_of
from tests.support.workspace import Workspace, cleanup, end

MARGIN = 0.01


def test_both_one_sided_tests_succeed_exactly_where_the_verdict_says_so() -> None:
    """Catches: a level of 10 % or 2.5 % per side, a wrong quantile, unpaired scores, a deviation by n instead
    of n - 1."""
    random = np.random.default_rng(0)
    seen: set[str] = set()
    for count in (2, 3, 5, 12):
        for _ in range(50):
            b = random.normal(0.9, 0.05, count)  # seeds differ more than frameworks do
            a = b + random.normal(random.choice([0.0, 0.007, 0.012, 0.02]), 0.004, count)
            result = compare(list(a), list(b), MARGIN)
            above = stats.ttest_1samp(a - b, -MARGIN, alternative="greater").pvalue < 0.05
            below = stats.ttest_1samp(a - b, MARGIN, alternative="less").pvalue < 0.05
            assert (result.verdict == "equivalent") == (above and below)
            farther = stats.ttest_1samp(a - b, MARGIN, alternative="greater").pvalue < 0.05
            assert (result.verdict == "different") == farther
            assert result.low is not None and result.high is not None
            assert (result.low + result.high) / 2 == pytest.approx(result.difference)
            seen.add(result.verdict)
    assert seen == {"equivalent", "different", "undecided"}


SPREAD = (-0.002, 0.001, 0.0, 0.002, -0.001)


@pytest.mark.parametrize(
    "planted, scale, verdict",
    [
        (0.0, 1, "equivalent"),
        (0.003, 1, "equivalent"),  # a certain difference that does not matter
        (0.03, 1, "different"),
        (-0.03, 1, "different"),
        (0.0, 20, "undecided"),  # neither a difference nor equivalence is shown
        (0.01, 1, "undecided"),
    ],
)
def test_a_planted_difference_has_its_verdict(planted: float, scale: float, verdict: str) -> None:
    """Catches: `equivalent` because no difference is significant, `different` because a tiny one is, a sign
    that is lost."""
    b = [0.9, 0.93, 0.91, 0.95, 0.92]
    a = [y + planted + scale * noise for y, noise in zip(b, SPREAD, strict=True)]
    assert compare(a, b, MARGIN).verdict == verdict
    assert compare(a, b, MARGIN).difference == pytest.approx(planted)


def test_too_few_pairs_prove_nothing() -> None:
    """Catches: a single pair, or none, that is `equivalent` with an interval of zero width, or NaN in
    JSON."""
    for scores in ([], [0.9]):
        result = compare(scores, scores, MARGIN)
        assert (result.verdict, result.low, result.high) == ("undecided", None, None)


@pytest.fixture(scope="module")
def of(request: pytest.FixtureRequest) -> Iterator[dict[str, RunConfig]]:
    """A configuration for each framework."""
    with composing():
        names = ("torch", "keras", "keras_jax")
        yield {name: config_of("data=iris", f"framework={name}") for name in names}


def outcome(config: RunConfig, seed: int, score: float, key: str = "test/accuracy") -> Outcome:
    status = "finished" if math.isfinite(score) else "diverged"
    metrics = {key: score} if status == "finished" else {}
    return Outcome(replace(config, seed=seed), {"status": status, "metrics": metrics}, skipped=False)


def test_pairs_of_frameworks_are_compared_within_one_training(of: dict[str, RunConfig]) -> None:
    """Catches: runs with different learning rates mixed, pairs of different seeds (their order differs here),
    a pair that is left out, a framework's own keys taken for a different training."""
    fast = {name: replace(c, optimizer=replace(c.optimizer, learning_rate=0.1)) for name, c in of.items()}
    runs = [outcome(of[name], seed, 0.9 + 0.01 * seed) for name in of for seed in range(3)]
    runs += [outcome(fast[name], seed, 0.5 + 0.01 * seed) for name in of for seed in (2, 0, 1)]
    runs[-1] = outcome(fast["keras_jax"], 1, 0.9)
    slow, quick = evaluate(runs, MARGIN)
    pairs = ["torch - keras", "torch - keras_jax", "keras - keras_jax"]
    assert [f"{pair.a} - {pair.b}" for pair in slow.pairs] == pairs
    assert slow.passed and not quick.passed
    assert quick.plain()["verdicts"] == dict(
        zip(pairs, ["equivalent", "undecided", "undecided"], strict=True)
    )
    assert (slow.axes["optimizer.learning_rate"], quick.axes["optimizer.learning_rate"]) == ("0.001", "0.1")
    assert slow.id != quick.id


def test_a_run_that_failed_is_in_no_pair_and_proves_nothing(
    of: dict[str, RunConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches: a framework that diverges on some seeds and counts as equivalent on the others."""
    runs = [outcome(of[name], seed, 0.9) for name in ("torch", "keras") for seed in range(4)]
    runs[6] = outcome(of["keras"], 2, math.nan)
    (report,) = evaluate(runs, MARGIN)
    (pair,) = report.pairs
    assert pair.seeds == (0, 1, 3) and pair.result.verdict == "equivalent"
    assert report.failed == 1 and not report.passed
    json.dumps(report.plain(), allow_nan=False)
    print_reports([report])
    assert "1 runs failed" in capsys.readouterr().out


@pytest.fixture
def workspace(tmp_path: Path, template: Path) -> Iterator[Workspace]:
    with cleanup(Workspace(tmp_path, template)) as workspace:
        yield workspace


def reports(workspace: Workspace) -> list[dict[str, Any]]:
    return [
        json.loads(path.read_text()) for path in (workspace.results / "certificates/accuracy").glob("*.json")
    ]


@pytest.mark.exhaustive
def test_the_command(workspace: Workspace) -> None:
    """Catches: trainings in float64 or with other seeds in one framework, a wrong exit status, a report that
    is not stored, finished runs that are repeated, invalid JSON with `--json`; a framework that trains
    something else and passes."""
    request = ("certify", "--accuracy", "framework=torch,keras_jax", "data=iris", "train.epochs=5")
    status, printed = end(workspace.start(*request))
    assert status == 0 and "10 runs to do" in printed and "equivalent" in printed, printed
    (stored,) = reports(workspace)
    assert stored["passed"] and stored["verdicts"] == {"torch - keras_jax": "equivalent"}
    assert [len(scores) for scores in stored["scores"].values()] == [5, 5]
    assert {run.config["precision"] for run in workspace.runs()} == {"float32"}
    assert {run.config["study"] for run in workspace.runs()} == {"accuracy"}
    status, printed = end(workspace.start(*request, "seed=range(6)", "--json"))
    assert status == 0 and "2 runs to do, 10 runs finished before" in printed, printed
    assert json.loads(printed[printed.index("[\n") :])[0]["pairs"][0]["result"]["pairs"] == 6
    workspace.plant({"*": "bias"})  # no bias learns anything
    status, printed = end(
        workspace.start(*request[:2], "framework=torch,faulty", "optimizer=sgd", "certify=off", *request[3:])
    )
    assert status == 1 and "torch - faulty" in printed, printed


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("--accuracy", "framework=torch"), "a single framework has nothing to compare with"),
        (("--accuracy", "framework=torch,keras", "seed=3"), "a single seed shows no spread"),
        (("--accuracy", "--margin", "0"), "'0' is not a margin"),
        (("--margin", "0.1"), "which only --accuracy compares"),
    ],
)
def test_a_comparison_without_a_possible_verdict_is_refused(
    arguments: tuple[str, ...], words: str, workspace: Workspace
) -> None:
    """Catches: minutes of training that can't give a verdict."""
    status, printed = end(workspace.start("certify", *arguments))
    assert status == 2 and words in printed, printed
    assert not (workspace.results / "runs").exists()
