"""Searches on a known function, with Optuna's own samplers, pruners and journal; no run is started."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from harness.core.validation import ConfigError
from harness.shell.search.config import SearchConfig, read_search
from harness.shell.search.space import override_texts
from harness.shell.search.study import JOURNAL, RunTrials, Search, Trial, TrialResult, TrialShouldContinue

PRESENT = {"rate": 0.1, "size": 3, "kind": "a"}
SPACE: dict[str, Any] = {
    "rate": {"low": 1e-4, "high": 1.0, "log": True},
    "size": {"low": 16, "high": 128, "step": 16},
    "kind": {"choices": ["a", "b"]},
}
GRID: dict[str, Any] = {"rate": {"low": 0.1, "high": 0.9, "step": 0.2}, "kind": {"choices": ["a", "b"]}}
EPOCHS = 4


def config(**changes: Any) -> SearchConfig:
    raw = {"sampler": "tpe", "trials": 12, "objectives": {"val/loss": "minimize"}, "space": SPACE} | changes
    return read_search(raw, PRESENT, None)


def error(values: Mapping[str, str]) -> float:
    """Least, 0.125, at rate 0.01, size 16, kind b; large outside of a narrow valley."""
    distance = (math.log10(float(values["rate"])) + 2) ** 2
    return distance + int(values.get("size", 16)) / 128 + (values["kind"] == "a")


def run_trials(trials: Sequence[Trial], should_continue: TrialShouldContinue | None) -> list[TrialResult]:
    """Results of a fake training: the loss falls towards the error."""
    results = []
    for trial in trials:
        epochs: dict[int, float] = {}
        state: Any = "complete"
        for epoch in range(1, EPOCHS + 1):
            epochs[epoch] = error(trial.values) + 1 / epoch
            if should_continue is not None and not should_continue(trial.number, epoch, epochs[epoch]):
                state = "pruned"
                break
        values = (error(trial.values),) if state == "complete" else ()
        results.append(TrialResult(state, values, epochs, runs=(f"run{trial.number}",)))
    return results


def search(
    folder: Path, config: SearchConfig, batch_size: int = 1, run_trials: RunTrials = run_trials
) -> list[Any]:
    """Run the search and return the comparable parts of its trials."""
    with Search(folder, "one", config, {"data.name": "iris"}, EPOCHS) as search:
        search.run(run_trials, batch_size)
        for trial in search.trials():
            assert trial.values in (None, [error(override_texts(trial.params))])
        return [
            (trial.number, trial.state.name, trial.params, trial.values, trial.intermediate_values)
            for trial in search.trials()
        ]


def refuse(trials: Sequence[Trial], should_continue: TrialShouldContinue | None) -> list[TrialResult]:
    raise AssertionError(f"{len(trials)} trials are run again")


def test_tpe_beats_random_search(tmp_path: Path) -> None:
    """Catches: results that are not reported to the sampler, or to another search or with the wrong sign, so
    that it learns nothing."""
    best: dict[str, list[float]] = {"tpe": [], "random": []}
    for sampler, values in best.items():
        for seed in range(20):
            settings = config(sampler=sampler, seed=seed, trials=30)
            with Search(tmp_path / f"{sampler}{seed}", "one", settings, {}) as search:
                search.run(lambda trials, _: [TrialResult("complete", (error(trials[0].values),))])
                (trial,) = search.best()
                values.append(trial.values[0])
    assert statistics.median(best["tpe"]) < 0.5 * statistics.median(best["random"])
    assert sum(tpe < other for tpe, other in zip(best["tpe"], best["random"], strict=True)) >= 15


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_directions(direction: str, tmp_path: Path) -> None:
    """Catches: a search that runs the wrong way."""
    settings = config(objectives={"val/loss": direction}, trials=40)
    with Search(tmp_path, "one", settings, {}) as search:
        search.run(run_trials)
        (trial,) = search.best()
        values = [trial.values[0] for trial in search.trials()]
    best = min if direction == "minimize" else max
    assert trial.values[0] == best(values)
    assert best(statistics.fmean(values[:20]), later := statistics.fmean(values[20:])) == later


KINDS = [(sampler, "none") for sampler in ("random", "tpe", "cmaes", "nsga2", "grid")]
KINDS += [(sampler, pruner) for sampler in ("random", "tpe") for pruner in ("median", "hyperband")]


@pytest.mark.parametrize(("sampler", "pruner"), KINDS)
def test_a_search_that_was_killed_at_any_instant_equals_an_unbroken_one(
    sampler: str, pruner: str, tmp_path: Path
) -> None:
    """Catches: a trial that is sampled twice, lost or drawn differently after a break, a sampler's state that
    is not restored, a partial line that makes the journal unreadable, a finished trial that is run again."""
    settings = config(sampler=sampler, pruner=pruner, space=GRID if sampler == "grid" else SPACE, trials=8)
    whole = search(tmp_path / "whole", settings, batch_size=3)
    assert len(whole) == 8
    journal = (tmp_path / "whole" / JOURNAL).read_bytes()
    ends = [place + 1 for place, byte in enumerate(journal) if byte == ord("\n")]
    some = ends[:5] + ends[5 + KINDS.index((sampler, pruner)) % 3 :: 3]
    for end in [*some, *(end + 20 for end in some[::2]), ends[-1]]:  # also in the middle of a write
        broken = tmp_path / str(end)
        broken.mkdir(exist_ok=True)
        (broken / JOURNAL).write_bytes(journal[:end])
        (broken / f"{JOURNAL}.lock").symlink_to(broken / JOURNAL)  # Optuna would wait half a minute for it
        again = refuse if end >= ends[-1] else run_trials
        assert search(broken, settings, batch_size=3, run_trials=again) == whole


def test_a_larger_total_equals_a_search_with_that_total_from_the_start(tmp_path: Path) -> None:
    """Catches: a total that counts only new trials, a batch that stays cut short."""
    for trials in (10, 11, 17):  # TPE draws at random until it has 10 results
        parts = search(tmp_path / "parts", config(trials=trials), batch_size=3)
        assert len(parts) == trials
    assert parts == search(tmp_path / "whole", config(trials=17), batch_size=3)
    assert search(tmp_path / "parts", config(trials=2), batch_size=3, run_trials=refuse) == parts


def test_a_batch_is_sampled_together_and_reported_in_order(tmp_path: Path) -> None:
    """Catches: identical trials in a batch, results reported for another trial."""
    sizes = []

    def backwards(trials: Sequence[Trial], should_continue: TrialShouldContinue | None) -> list[TrialResult]:
        sizes.append(len(trials))
        return list(reversed(run_trials(list(reversed(trials)), should_continue)))

    for pruner in ("none", "median", "hyperband"):
        settings = config(pruner=pruner, trials=20)
        trials = search(tmp_path / pruner, settings, batch_size=4, run_trials=backwards)
        assert trials == search(tmp_path / f"{pruner} forwards", settings, batch_size=4)
        assert len({json.dumps(params) for _, _, params, _, _ in trials}) == 20
    assert sizes == [4] * 15


@pytest.mark.parametrize("pruner", ["median", "hyperband"])
def test_pruning_ends_bad_trials_early(pruner: str, tmp_path: Path) -> None:
    """Catches: a pruner that is never called, that uses the wrong sign, or that ends the best trial."""
    trials = search(tmp_path, config(sampler="random", pruner=pruner, trials=40))
    best = min(error(override_texts(params)) for _, _, params, _, _ in trials)
    groups = {state: [t for t in trials if t[1] == state] for state in ("COMPLETE", "PRUNED")}
    assert len(groups["PRUNED"]) >= 10 and len(groups["COMPLETE"]) >= 5
    assert all(0 < len(epochs) < EPOCHS for *_, epochs in groups["PRUNED"])
    means = {
        state: statistics.fmean(error(override_texts(t[2])) for t in group) for state, group in groups.items()
    }
    assert means["COMPLETE"] < means["PRUNED"]
    if pruner == "median":  # Hyperband may end the best one, in a bracket of its own
        assert min(values[0] for *_, values, _ in groups["COMPLETE"]) == best


def test_a_failed_trial_is_recorded_and_the_search_continues(tmp_path: Path) -> None:
    """Catches: a failure that ends the search, that counts as a value, or that is run again."""

    def failing(trials: Sequence[Trial], should_continue: TrialShouldContinue | None) -> list[TrialResult]:
        lost = TrialResult("failed", reason="diverged: too fast")
        return [lost if t.number % 3 == 0 else run_trials([t], should_continue)[0] for t in trials]

    settings = config(trials=14)
    trials = search(tmp_path, settings, batch_size=2, run_trials=failing)
    assert [state for _, state, *_ in trials] == ["FAIL", "COMPLETE", "COMPLETE"] * 4 + ["FAIL", "COMPLETE"]
    assert all(values is None for _, state, _, values, _ in trials if state == "FAIL")
    assert search(tmp_path, settings, batch_size=2, run_trials=refuse) == trials
    with Search(tmp_path, "one", settings, {"data.name": "iris"}) as search_:
        assert search_.trials()[0].user_attrs["reason"] == "diverged: too fast"
        assert search_.best()[0].number % 3


def test_without_a_complete_trial_there_is_no_best(tmp_path: Path) -> None:
    """Catches: Optuna's own exception in this case."""
    with Search(tmp_path, "one", config(trials=2), {}) as search_:
        search_.run(lambda trials, should_continue: [TrialResult("failed", reason="no")] * len(trials))
        assert search_.best() == []


def test_several_objectives(tmp_path: Path) -> None:
    """Catches: objectives in another order, a front with trials that another one beats."""
    settings = config(sampler="nsga2", objectives={"val/accuracy": "maximize", "speed/step_ms": "minimize"})

    def both(trials: Sequence[Trial], should_continue: TrialShouldContinue | None) -> list[TrialResult]:
        return [
            TrialResult("complete", (-error(t.values), float(t.values["size"])), {1: 0.5}) for t in trials
        ]

    with Search(tmp_path, "one", settings, {}) as search_:
        search_.run(both, 3)
        front = {trial.number for trial in search_.best()}
        values = {trial.number: override_texts(trial.params) for trial in search_.trials()}
    points = {number: (error(params), float(params["size"])) for number, params in values.items()}
    beaten = {
        number
        for number, (a, b) in points.items()
        if any(c <= a and d <= b and (c, d) != (a, b) for c, d in points.values())
    }
    assert front == set(points) - beaten


CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"space": SPACE | {"rate": {"low": 1e-4, "high": 0.5, "log": True}}}, "search.space.rate"),
    ({"space": {key: SPACE[key] for key in ("rate", "size")}}, "search.space.kind"),
    ({"objectives": {"val/loss": "maximize"}}, "search.objectives"),
    ({"sampler": "random"}, "search.sampler"),
    ({"seed": 1}, "search.seed"),
    ({"pruner": "median"}, "search.pruner"),
]


@pytest.mark.parametrize(("change", "key"), CHANGES, ids=[key for _, key in CHANGES])
def test_another_search_under_the_same_name_is_refused(
    change: dict[str, Any], key: str, tmp_path: Path
) -> None:
    """Catches: trials of two searches in one journal; an error that does not name the difference."""
    before = search(tmp_path, config(trials=3))
    with pytest.raises(ConfigError) as caught:
        search(tmp_path, config(**change), run_trials=refuse)
    assert [mistake.key for mistake in caught.value.mistakes] == [key]
    with pytest.raises(ConfigError, match=r"data\.name: .* begun with iris, and this one is with wine"):
        Search(tmp_path, "one", config(), {"data.name": "wine"}, EPOCHS).__enter__()
    assert search(tmp_path, config(trials=3), run_trials=refuse) == before


def test_two_commands_at_once(tmp_path: Path) -> None:
    """Catches: two processes that run the same trials; a lock that outlives its search."""
    with Search(tmp_path, "one", config(), {}), pytest.raises(ConfigError, match="another command"):
        Search(tmp_path, "one", config(), {}).__enter__()
    with Search(tmp_path, "one", config(), {}):
        pass


def test_trials_that_would_be_drawn_differently_are_kept(tmp_path: Path) -> None:
    """Catches: a search that a new version of Optuna makes unusable, or whose trials are discarded."""
    before = search(tmp_path, config(trials=6))
    path = tmp_path / JOURNAL
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        if "size" in line.get("params", {}):
            line["params"]["size"] = 144 - line["params"]["size"]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    notes: list[str] = []
    with Search(tmp_path, "one", config(trials=9), {"data.name": "iris"}, EPOCHS, notes.append) as search_:
        search_.run(run_trials)
        after = [(trial.state.name, trial.params) for trial in search_.trials()]
    assert len(notes) == 1 and "draws other trials" in notes[0]
    expected = [(state, params | {"size": 144 - params["size"]}) for _, state, params, *_ in before]
    assert after[:6] == expected
    assert len({json.dumps(params) for _, params in after}) == 9


def test_a_grid_has_each_combination_once(tmp_path: Path) -> None:
    """Catches: a combination twice, or none; an end value that floating-point steps miss; Optuna's call
    to stop a loop that does not exist."""
    trials = search(tmp_path, config(sampler="grid", space=GRID, trials=None), batch_size=4)
    combinations = sorted((params["rate"], params["kind"]) for _, _, params, *_ in trials)
    assert combinations == [(rate, kind) for rate in (0.1, 0.3, 0.5, 0.7, 0.9) for kind in "ab"]
