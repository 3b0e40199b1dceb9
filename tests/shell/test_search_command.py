"""A search by the command: its section checked, its trials in real workers, killed and resumed."""

from __future__ import annotations

import os
import signal
import statistics
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from harness.core.data import dataset
from harness.core.validation import ConfigError
from harness.shell.commands import main
from harness.shell.compose import overrides
from harness.shell.search.config import Pruner, Sampler, SearchConfig, read_search, search_folder
from harness.shell.search.plan import plan_search
from harness.shell.search.space import LEAF_KEYS
from harness.shell.search.study import JOURNAL
from harness.shell.search.trial_composer import TrialComposer
from tests.support.compose import choices, composed, composing
from tests.support.paths import CONF
from tests.support.workspace import Workspace, check_consistent, cleanup, end, wait_until

RATES = "search.space={optimizer.learning_rate:{low:1e-3,high:1,log:true}}"
GOOD: dict[str, Any] = {
    "sampler": "tpe",
    "trials": 3,
    "objectives": {"val/loss": "minimize"},
    "space": {"rate": {"low": 0.1, "high": 1.0}, "units": {"choices": [[32], "[64,32]", None]}},
}
PRESENT = {"rate": 0.1, "size": 3, "units": None}


@pytest.fixture
def workspace(tmp_path: Path, template: Path) -> Iterator[Workspace]:
    with cleanup(Workspace(tmp_path, template)) as workspace:
        yield workspace


def trials(workspace: Workspace, study: str) -> list[tuple[str, dict[str, Any], list[float] | None]]:
    """State, parameters and values of each trial, read as any other program would with Optuna."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    path = search_folder(workspace.results, study) / JOURNAL
    study_of = optuna.load_study(study_name=study, storage=JournalStorage(JournalFileBackend(str(path))))
    return [(trial.state.name, trial.params, trial.values) for trial in study_of.trials]


@pytest.mark.parametrize("choice", choices("search"))
def test_every_search_fits_every_model(choice: str, tmp_path: Path) -> None:
    """Catches: a key of a space that not every model has, a value that a run can't have, a sampler that does
    not support its space."""
    space = yaml.safe_load((CONF / f"search/{choice}.yaml").read_text())["space"]
    with composing():
        for model in choices("model"):
            config = composed(f"search={choice}", f"model={model}")
            assert [key for key in space if OmegaConf.select(config, key) is None] == []
        arguments = [f"search={choice}", "data=iris", f"results_dir={tmp_path}"]
        loader = GlobalHydra.instance().config_loader()
        composer = TrialComposer(composed(*arguments), loader, overrides.find_groups([CONF]))
        plan = plan_search(composed(*arguments), arguments, composer, [], None)
    assert plan.epochs == 10 and plan.base.data.name == "iris"


MISTAKES: list[tuple[dict[str, Any], str, str]] = [
    ({"sampler": "tp"}, "search.sampler", "did you mean 'tpe'"),
    ({"sample": "tpe"}, "search.sample", "did you mean 'sampler'"),
    ({"trials": 0}, "search.trials", "out of range"),
    ({"trials": None}, "search.trials", "is missing"),
    ({"space": {}}, "search.space", "is empty"),
    ({"space": {"rat": {"low": 1, "high": 2}}}, "search.space.rat", "did you mean 'rate'"),
    ({"space": {"rate": 3}}, "search.space.rate", "neither a range nor choices"),
    ({"space": {"rate": {"low": 2, "high": 1}}}, "search.space.rate", "low (2.0) is not below high (1.0)"),
    ({"space": {"rate": {"low": 0, "high": 1, "log": True}}}, "search.space.rate", "no logarithm"),
    (
        {"space": {"rate": {"low": 1, "high": 2, "log": True, "step": 0.5}}},
        "search.space.rate",
        "log and step",
    ),
    ({"space": {"rate": {"low": 1, "high": 2, "step": 3}}}, "search.space.rate", "does not fit"),
    ({"space": {"rate": {"low": 1, "hihg": 2}}}, "search.space.rate.hihg", "did you mean 'high'"),
    ({"space": {"rate": {"low": "a", "high": 2}}}, "search.space.rate.low", "not a number"),
    ({"space": {"units": {"choices": []}}}, "search.space.units", "no choices"),
    ({"space": {"units": {"choices": [[1], "[1]"]}}}, "search.space.units", "2 times"),
    ({"objectives": {}}, "search.objectives", "none"),
    ({"objectives": {"val/acuracy": "maximize"}}, "search.objectives.val/acuracy", "'val/accuracy'"),
    ({"objectives": {"val/mse": "minimize"}}, "search.objectives.val/mse", "not a metric of this task"),
    ({"objectives": {"val/loss": "minimise"}}, "search.objectives.val/loss", "did you mean 'minimize'"),
    ({"pruner": "meridian"}, "search.pruner", "did you mean 'median'"),
    ({"pruner": "median", "objectives": {"time/train_s": "minimize"}}, "search.pruner", "after each epoch"),
    ({"sampler": "grid"}, "search.space.rate", "a grid needs values"),
    ({"sampler": "cmaes", "space": {"units": {"choices": [1]}}}, "search.sampler", "choices only"),
]
SEVERAL = {"val/loss": "minimize", "time/train_s": "minimize"}
MISTAKES += [
    ({"pruner": "median", "objectives": SEVERAL}, "search.pruner", "allows one objective"),
    ({"sampler": "cmaes", "objectives": SEVERAL}, "search.sampler", "allows one objective"),
]


@pytest.mark.parametrize(("change", "key", "words"), MISTAKES, ids=[f"{key} {w}" for _, key, w in MISTAKES])
def test_a_wrong_search_is_refused(change: dict[str, Any], key: str, words: str) -> None:
    """Catches: a mistake that shows only after the search has begun, or that is not reported."""
    task = dataset.sample(dataset.DataConfig("iris")).task
    read_search(GOOD, PRESENT, task)
    with pytest.raises(ConfigError) as caught:
        read_search(GOOD | change, PRESENT, task)
    assert caught.value.mistakes[0].key == key
    assert len({mistake.key.rpartition(".")[0] for mistake in caught.value.mistakes}) == 1
    assert words in str(caught.value)


def test_keys_on_the_command_line_reach_into_a_space() -> None:
    """Catches: dotted and nested keys treated as two, a null that does not remove a key, integers for a key
    that is a float."""
    space = {"rate": {"low": 0, "high": 2}, "train.size": {"low": 1, "high": 9}, "units": {"choices": [1]}}
    space |= {"train": {"size": {"high": 4}}, "units": None}
    config = read_search(GOOD | {"space": space}, PRESENT | {"train.size": 5}, None)
    assert set(config.space) == {"rate", "train.size"}
    assert repr(config.space["rate"]) == "Span(low=0.0, high=2.0, log=False, step=None)"
    assert repr(config.space["train.size"]) == "Span(low=1, high=4, log=False, step=None)"


REFUSED: list[tuple[list[str], list[str]]] = [
    (
        ["search.space.train.batch_size.low=0", "search.space.model.units.choices=['[32]','[a]']"],
        ["in: search.space.train.batch_size, which has 0", "in: search.space.model.units, which has [a]"],
    ),
    (["search.space.model.units.choices=['8,9']"], ["model.units: '8,9' are several values"]),
    (["search.space.optimizer.choices=[adm]"], ["did you mean 'adam'"]),
    (["search.space.seed={low:0,high:9}", "seed=1,2"], ["seed: is both swept and searched"]),
    (["search.space.study.choices=[a,b]"], ["search.space.study: does not affect the result"]),
    (["search.objectives={speed/step_ms:minimize}", "workers=2"], ["would disturb each other"]),
    (["search.pruner=median", "seed=1,2"], ["'median' prunes single runs, and each trial has 2 (seed)"]),
    (["search.trials=1,2"], ["search.trials: has several values"]),
    (["search.sampler=x", "modle=lstm"], ["search.sampler: 'x' is not known", "modle: no such key"]),
    (["hydra/launcher=basic"], ["hydra/launcher: a search can't use BasicLauncher"]),
    (["hydra/sweeper=basic"], ["search: describes a search, which needs Hydra's default sweeper"]),
    (["data=iris", "model=cnn"], ["data that cnn takes: "]),
]


@pytest.mark.parametrize(("arguments", "words"), REFUSED, ids=[arguments[0] for arguments, _ in REFUSED])
def test_a_search_that_conflicts_with_the_rest_is_refused(
    arguments: list[str], words: list[str], workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches: a request that fails after some trials, a traceback, a folder created for nothing."""
    assert main.main(["-m", "search=tpe", *arguments]) == 2
    printed = capsys.readouterr().err
    assert "nothing was started" in printed
    for word in words:
        assert word in printed
    assert not list(workdir.rglob(JOURNAL))


def test_certify_refuses_a_search(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches: a command that composes a sweep and receives trials."""
    assert main.main(["certify", "search=tpe"]) == 2
    assert "search: searches among runs, and this command does not train" in capsys.readouterr().err


def test_failed_and_averaged_trials(workspace: Workspace) -> None:
    """Catches: a failed run that ends the search, an exit status that hides it, an objective that is that of
    one run of several, a trial that MLflow does not have, a best trial that can't be repeated."""
    rates = "search.space={optimizer.learning_rate:{choices:[0.01,0.1,0.3]}}"
    workspace.plant({2: "raise"})
    arguments = ("search=grid", rates, "seed=1,2", "study=mean", "workers=2")
    status, printed = end(workspace.sweep(*arguments))
    assert status == 1, printed
    assert [state for state, *_ in trials(workspace, "mean")] == ["FAIL"] * 3
    assert "no trial is complete" in printed and "trial 2 failed: failed: " in printed
    workspace.plant({})
    status, printed = end(workspace.sweep(*arguments, "search.trials=9", "study=again"))
    assert status == 0, printed
    runs = workspace.runs()
    assert len(runs) == 6
    values = {}
    for state, params, value in trials(workspace, "again"):
        rate = float(params["optimizer.learning_rate"])
        of_trial = [run for run in runs if run.config["optimizer"]["learning_rate"] == rate]
        losses = [run.result["metrics"]["val/loss"] for run in of_trial]
        assert (state, value) == ("COMPLETE", [statistics.fmean(losses)]) and len(losses) == 2
        values[rate] = statistics.fmean(losses)
    best = min(values, key=values.__getitem__)
    assert f"study=again seed=1,2 optimizer.learning_rate={best}" in printed.replace(" workers=2", "")
    tags = {tracked.tags["study"]: tracked.tags for tracked in workspace.tracked("study")}
    assert tags["again"]["search.best.optimizer.learning_rate"] == str(best)
    assert tags["mean"]["search.trials"] == "3 failed"
    active = [tracked for tracked in workspace.tracked() if tracked.active]
    assert {tracked.tags["search.trial"] for tracked in active} == {"0", "1", "2"}


@pytest.mark.slow
def test_a_search_whose_parent_is_killed_resumes(workspace: Workspace, tmp_path: Path) -> None:
    """Catches: a trial that is sampled again with other parameters, lost, or run twice after SIGKILL in the
    middle of a batch; an MLflow run that is left running; a trial that is in the journal and never reaches
    MLflow, because the kill came between the two."""
    arguments = ("search=tpe", RATES, "search.trials=7", "workers=2", "study=find")
    workspace.plant({"*": "slow"})
    journal = search_folder(workspace.results, "find") / JOURNAL

    def finished_trials() -> int:
        return journal.read_text().count('"values"') if journal.exists() else 0

    for count in (1, 4):
        process = workspace.sweep(*arguments)
        events = len(list(workspace.results.glob("runs/*/events.jsonl")))
        wait_until(
            lambda count=count, events=events: (
                finished_trials() >= count  # type: ignore[misc]
                and len(list(workspace.results.glob("runs/*/events.jsonl"))) > events
            ),
            process,
        )
        os.kill(process.pid, signal.SIGKILL)
        end(process)
        wait_until(lambda: not workspace.processes())
    workspace.plant({})
    status, printed = end(workspace.sweep(*arguments))
    assert status == 0, printed
    whole = end(workspace.sweep(*arguments, "results_dir=whole"))
    assert whole[0] == 0, whole[1]
    unbroken = Workspace.__new__(Workspace)
    unbroken.results = tmp_path / "whole"
    assert trials(workspace, "find") == trials(unbroken, "find")
    assert len(workspace.runs()) == len({run.folder.run_id for run in workspace.runs()}) == 7
    check_consistent(workspace)
    for database in workspace.results.glob("mlflow.db*"):
        database.unlink()
    status, printed = end(workspace.sweep(*arguments))
    assert (status, "all 7 trials were done before" in printed) == (0, True), printed
    check_consistent(workspace)


def test_a_pruned_search_in_a_real_framework(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches: a pruned run that trains on, that counts as failed, or that the leaderboard can't show; a
    pruner that looks at another run's epochs; a search that needs -m."""
    arguments = ("framework=torch", "data=iris", "train.epochs=9", "limit=off", "study=prune", RATES)
    status, printed = end(workspace.start("search=hyperband", *arguments, "search.trials=12"))
    assert status == 0, printed
    states = [state for state, *_ in trials(workspace, "prune")]
    runs = workspace.runs()
    pruned = [run for run in runs if run.status == "pruned"]
    assert states.count("PRUNED") == len(pruned) >= 2
    assert all(len(run.events) < 10 for run in pruned)
    assert "limit=off study=prune optimizer.learning_rate=0." in printed
    assert main.main(["leaderboard", "prune", "--results-dir", str(workspace.results)]) == 0
    assert capsys.readouterr().out.count("(1 pruned)") == len(pruned)  # a row for each trial


def test_the_page_on_searches_has_every_key_and_every_choice() -> None:
    """Catches: a key, a sampler or an example that was added without documentation."""
    text = (CONF.parent / "docs/guide/search.md").read_text("utf-8")
    words = [*get_args(Sampler), *get_args(Pruner), *(field.name for field in fields(SearchConfig))]
    for word in (*words, *choices("search"), *LEAF_KEYS):
        assert f"`{word}`" in text, word
