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
from harness.shell.search.space import SearchConfig, override_text, read
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
    return read(raw, PRESENT, None)


def error(values: Mapping[str, str]) -> float:
    """Least, 0.125, at rate 0.01, size 16, kind b; large outside of a narrow valley."""
    distance = (math.log10(float(values["rate"])) + 2) ** 2
    return distance + int(values.get("size", 16)) / 128 + (values["kind"] == "a")


def carry(trials: Sequence[Trial], umpire: TrialShouldContinue | None) -> list[TrialResult]:
    """What a training would come to: it falls towards the error."""
    answers = []
    for trial in trials:
        epochs: dict[int, float] = {}
        state: Any = "complete"
        for epoch in range(1, EPOCHS + 1):
            epochs[epoch] = error(trial.values) + 1 / epoch
            if umpire is not None and not umpire(trial.number, epoch, epochs[epoch]):
                state = "pruned"
                break
        values = (error(trial.values),) if state == "complete" else ()
        answers.append(TrialResult(state, values, epochs, runs=(f"run{trial.number}",)))
    return answers


def search(folder: Path, config: SearchConfig, together: int = 1, carry: RunTrials = carry) -> list[Any]:
    """All trials of the search, as far as they can be compared."""
    with Search(folder, "one", config, {"data.name": "iris"}, EPOCHS) as search:
        search.run(carry, together)
        for trial in search.trials():
            assert trial.values in (None, [error(texts(trial.params))])
        return [
            (trial.number, trial.state.name, trial.params, trial.values, trial.intermediate_values)
            for trial in search.trials()
        ]


def refuse(trials: Sequence[Trial], umpire: TrialShouldContinue | None) -> list[TrialResult]:
    raise AssertionError(f"{len(trials)} trials are done again")


def test_tpe_beats_random_search(tmp_path: Path) -> None:
    """Catches: trials that are not told, or told to another search or with the wrong sign, so that the
    sampler learns nothing."""
    best: dict[str, list[float]] = {"tpe": [], "random": []}
    for sampler, found in best.items():
        for seed in range(20):
            asked = config(sampler=sampler, seed=seed, trials=30)
            with Search(tmp_path / f"{sampler}{seed}", "one", asked, {}) as search:
                search.run(lambda trials, _: [TrialResult("complete", (error(trials[0].values),))])
                (trial,) = search.best()
                found.append(trial.values[0])
    assert statistics.median(best["tpe"]) < 0.5 * statistics.median(best["random"])
    assert sum(tpe < other for tpe, other in zip(best["tpe"], best["random"], strict=True)) >= 15


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_directions(direction: str, tmp_path: Path) -> None:
    """Catches: a search that runs the wrong way."""
    asked = config(objectives={"val/loss": direction}, trials=40)
    with Search(tmp_path, "one", asked, {}) as search:
        search.run(carry)
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
    """Catches: a trial that is asked twice, lost or drawn otherwise after a break, a sampler's state that is
    not restored, half a line that nobody can read on after, a finished trial that is done again."""
    asked = config(sampler=sampler, pruner=pruner, space=GRID if sampler == "grid" else SPACE, trials=8)
    whole = search(tmp_path / "whole", asked, together=3)
    assert len(whole) == 8
    journal = (tmp_path / "whole" / JOURNAL).read_bytes()
    ends = [place + 1 for place, byte in enumerate(journal) if byte == ord("\n")]
    some = ends[:5] + ends[5 + KINDS.index((sampler, pruner)) % 3 :: 3]
    for end in [*some, *(end + 20 for end in some[::2]), ends[-1]]:  # also in the middle of a write
        broken = tmp_path / str(end)
        broken.mkdir(exist_ok=True)
        (broken / JOURNAL).write_bytes(journal[:end])
        (broken / f"{JOURNAL}.lock").symlink_to(broken / JOURNAL)  # which Optuna would wait half a minute for
        again = refuse if end >= ends[-1] else carry
        assert search(broken, asked, together=3, carry=again) == whole


def test_a_larger_total_goes_on_as_if_it_had_been_asked_for_at_once(tmp_path: Path) -> None:
    """Catches: a total that counts the new trials alone, a batch that stays cut short."""
    for trials in (10, 11, 17):  # TPE draws at random until 10 trials are told
        parts = search(tmp_path / "parts", config(trials=trials), together=3)
        assert len(parts) == trials
    assert parts == search(tmp_path / "whole", config(trials=17), together=3)
    assert search(tmp_path / "parts", config(trials=2), together=3, carry=refuse) == parts


def test_a_batch_is_asked_together_and_told_in_order(tmp_path: Path) -> None:
    """Catches: trials of a batch that are the same, answers that are told to another trial."""
    sizes = []

    def backwards(trials: Sequence[Trial], umpire: TrialShouldContinue | None) -> list[TrialResult]:
        sizes.append(len(trials))
        return list(reversed(carry(list(reversed(trials)), umpire)))

    for pruner in ("none", "median", "hyperband"):
        asked = config(pruner=pruner, trials=20)
        trials = search(tmp_path / pruner, asked, together=4, carry=backwards)
        assert trials == search(tmp_path / f"{pruner} forwards", asked, together=4)
        assert len({json.dumps(params) for _, _, params, _, _ in trials}) == 20
    assert sizes == [4] * 15


@pytest.mark.parametrize("pruner", ["median", "hyperband"])
def test_pruning_ends_bad_trials_early(pruner: str, tmp_path: Path) -> None:
    """Catches: a pruner that is never asked, that judges by the wrong sign, or that ends the best."""
    trials = search(tmp_path, config(sampler="random", pruner=pruner, trials=40))
    best = min(error(texts(params)) for _, _, params, _, _ in trials)
    done = {state: [t for t in trials if t[1] == state] for state in ("COMPLETE", "PRUNED")}
    assert len(done["PRUNED"]) >= 10 and len(done["COMPLETE"]) >= 5
    assert all(0 < len(epochs) < EPOCHS for *_, epochs in done["PRUNED"])
    means = {state: statistics.fmean(error(texts(t[2])) for t in found) for state, found in done.items()}
    assert means["COMPLETE"] < means["PRUNED"]
    if pruner == "median":  # Hyperband may end the best one, in a bracket of its own
        assert min(values[0] for *_, values, _ in done["COMPLETE"]) == best


def texts(params: Mapping[str, Any]) -> dict[str, str]:
    return {key: override_text(value) for key, value in params.items()}


def test_a_failed_trial_is_told_and_the_search_goes_on(tmp_path: Path) -> None:
    """Catches: a failure that ends the search, that counts as some value, or that is done again."""

    def failing(trials: Sequence[Trial], umpire: TrialShouldContinue | None) -> list[TrialResult]:
        lost = TrialResult("failed", reason="diverged: too fast")
        return [lost if t.number % 3 == 0 else carry([t], umpire)[0] for t in trials]

    asked = config(trials=14)
    trials = search(tmp_path, asked, together=2, carry=failing)
    assert [state for _, state, *_ in trials] == ["FAIL", "COMPLETE", "COMPLETE"] * 4 + ["FAIL", "COMPLETE"]
    assert all(values is None for _, state, _, values, _ in trials if state == "FAIL")
    assert search(tmp_path, asked, together=2, carry=refuse) == trials
    with Search(tmp_path, "one", asked, {"data.name": "iris"}) as found:
        assert found.trials()[0].user_attrs["reason"] == "diverged: too fast"
        assert found.best()[0].number % 3


def test_without_a_complete_trial_there_is_no_best(tmp_path: Path) -> None:
    """Catches: Optuna's own exception for it."""
    with Search(tmp_path, "one", config(trials=2), {}) as found:
        found.run(lambda trials, umpire: [TrialResult("failed", reason="no")] * len(trials))
        assert found.best() == []


def test_several_objectives(tmp_path: Path) -> None:
    """Catches: objectives in another order, a front with trials that another one beats."""
    asked = config(sampler="nsga2", objectives={"val/accuracy": "maximize", "speed/step_ms": "minimize"})

    def both(trials: Sequence[Trial], umpire: TrialShouldContinue | None) -> list[TrialResult]:
        return [
            TrialResult("complete", (-error(t.values), float(t.values["size"])), {1: 0.5}) for t in trials
        ]

    with Search(tmp_path, "one", asked, {}) as found:
        found.run(both, 3)
        front = {trial.number for trial in found.best()}
        values = {trial.number: texts(trial.params) for trial in found.trials()}
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
    """Catches: trials of two searches in one journal; a refusal that does not say what differs."""
    before = search(tmp_path, config(trials=3))
    with pytest.raises(ConfigError) as caught:
        search(tmp_path, config(**change), carry=refuse)
    assert [mistake.key for mistake in caught.value.mistakes] == [key]
    with pytest.raises(ConfigError, match=r"data\.name: .* begun with iris, and this one is with wine"):
        Search(tmp_path, "one", config(), {"data.name": "wine"}, EPOCHS).__enter__()
    assert search(tmp_path, config(trials=3), carry=refuse) == before


def test_two_commands_at_once(tmp_path: Path) -> None:
    """Catches: two processes that draw and tell the same trials; a lock that outlives its search."""
    with Search(tmp_path, "one", config(), {}), pytest.raises(ConfigError, match="another command"):
        Search(tmp_path, "one", config(), {}).__enter__()
    with Search(tmp_path, "one", config(), {}):
        pass


def test_trials_that_would_be_drawn_otherwise_are_kept(tmp_path: Path) -> None:
    """Catches: a search that a new version of Optuna makes unusable, or whose trials are thrown away."""
    before = search(tmp_path, config(trials=6))
    path = tmp_path / JOURNAL
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        if "size" in line.get("params", {}):
            line["params"]["size"] = 144 - line["params"]["size"]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    said: list[str] = []
    with Search(tmp_path, "one", config(trials=9), {"data.name": "iris"}, EPOCHS, said.append) as found:
        found.run(carry)
        after = [(trial.state.name, trial.params) for trial in found.trials()]
    assert len(said) == 1 and "draws other trials" in said[0]
    kept = [(state, params | {"size": 144 - params["size"]}) for _, state, params, *_ in before]
    assert after[:6] == kept
    assert len({json.dumps(params) for _, params in after}) == 9


def test_a_grid_has_each_combination_once(tmp_path: Path) -> None:
    """Catches: a combination twice, or none; an end value that floating-point steps miss; Optuna's own end of
    a loop that is not there."""
    trials = search(tmp_path, config(sampler="grid", space=GRID, trials=None), together=4)
    found = sorted((params["rate"], params["kind"]) for _, _, params, *_ in trials)
    assert found == [(rate, kind) for rate in (0.1, 0.3, 0.5, 0.7, 0.9) for kind in "ab"]
