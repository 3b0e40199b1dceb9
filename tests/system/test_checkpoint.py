"""Interrupted runs resume from their last checkpoint and end bit for bit like uninterrupted ones.

The command and its workers are real and are killed at chosen instants. Damage that a kill may do to a
checkpoint's file is tested on copies of a results folder, in an adapter's process.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.core.config.run_config import CheckpointConfig, RunConfig
from harness.core.runs import checkpoint
from harness.core.runs.checkpoint import CheckpointTimer, UnusableError
from harness.core.runs.run_folder import CHECKPOINT, UNUSABLE, RunFolder
from harness.core.storage import npz
from harness.core.training.training_state import State
from harness.core.validation import ConfigError, to_plain
from harness.shell.reports.leaderboard import rows
from harness.shell.reports.progress import reporter
from harness.shell.reports.progress_text import outcome_text
from harness.shell.runs.inputs import RunInputs
from harness.shell.runs.prepare import prepare
from harness.shell.session.session import Session
from tests.support.adapter_process import Adapters, frameworks
from tests.support.compose import composing, config_of
from tests.support.paths import FAULTY
from tests.support.tasks import EPOCHS, make_run, make_task, same
from tests.support.workspace import Run, Workspace, check_consistent, cleanup, end, wait_until

PAIRS = [(name, execution) for name, framework in frameworks().items() for execution in framework.executions]
LAYERS: list[dict[str, Any]] = [
    {"kind": "lstm", "units": 4, "returns": "last"},
    {"kind": "dropout", "rate": 0.3},
    {"kind": "dense", "units": 5},
    {"kind": "batch_norm"},
    {"kind": "output"},
]


@pytest.fixture
def workspace(tmp_path: Path, template: Path) -> Iterator[Workspace]:
    with cleanup(Workspace(tmp_path, template)) as workspace:
        yield workspace


@pytest.mark.parametrize(("framework", "execution"), PAIRS)
def test_a_resumed_training_equals_the_uninterrupted_one(
    framework: str, execution: str, adapters: Adapters
) -> None:
    """Catches: reading weights and state changes a training; a new program does not continue with the masks,
    running statistics, slots, step count or table of rates of the interrupted one, in float32 and with the
    framework's own optimizer."""
    task = make_task(execution, layers=LAYERS, in_shape=[3, 4], precision="float32")
    run, rule = make_run(task, 0.02, seed=5), {"name": "adam", "learning_rate": 0.02}
    after = EPOCHS // 2
    whole, read, resumed = adapters(framework, "float32").call(
        "tests.support.adapter_cases:interrupted", task=task, rule=rule, run=run, after=after
    )
    assert same(read, whole)
    for values in ("losses", "predictions"):
        assert same(resumed[values], whole[values][after:])
    for values in ("weights", "slots"):
        assert same(resumed[values], whole[values])


def numbers(run: Run) -> list[Any]:
    """The numbers of a run that must not depend on how often it was interrupted."""
    metrics = {
        key: v for key, v in run.result["metrics"].items() if key.startswith(("train/", "val/", "test/"))
    }
    epochs = [(e["epoch"], e["steps"], e["samples"], e["metrics"]) for e in run.result["epochs"]]
    return [metrics, epochs]


def same_end(a: RunFolder, b: RunFolder) -> bool:
    files = ("weights.npz", "state.npz")
    return all(same(npz.load(a.path / name), npz.load(b.path / name)) for name in files)


@pytest.mark.parametrize(
    "sweep",
    [
        ("framework=torch", "execution=eager", "model=cnn_norm", "model.filters=[4]", "optimizer=momentum"),
        pytest.param(
            ("framework=keras_jax", "execution=epoch", "model=lstm", "model.units=8", "optimizer=adam"),
            marks=pytest.mark.exhaustive,
        ),
    ],
    ids=["torch", "keras_jax"],
)
def test_a_command_resumes_after_kills(sweep: tuple[str, ...], workspace: Workspace) -> None:
    """Catches: an epoch that is trained again although a checkpoint has it, is lost, or is stored twice in
    MLflow; numbers, weights or a state that differ from those of an uninterrupted run; a command that does
    not resume after a kill; a checkpoint among MLflow's artifacts, or left behind by a run that has ended."""
    common = (*sweep, "model.dropout=0.3", "schedule=cosine", "train.epochs=40", "certify=off", "limit=off")
    request = (*common, "checkpoint.every_epochs=3", "checkpoint.every_minutes=null")

    def interrupt(after: int, worker: bool) -> tuple[Run, int]:
        """Kill the worker or the shell after more than `after` epochs; return the run and its checkpoint's
        epoch."""
        process = workspace.start(*request)
        wait_until(lambda: workspace.runs() and len(workspace.runs()[0].events) > after, process)
        os.kill(workspace.runs()[0].pid if worker else process.pid, signal.SIGKILL)
        assert end(process)[0] == (1 if worker else -signal.SIGKILL)
        wait_until(lambda: not workspace.processes())
        (run,) = workspace.runs()
        stored = checkpoint.load(run.folder.checkpoint, run.folder.run_id)
        # the kill may come before the last checkpoint is written
        assert stored is not None and stored.epoch % 3 == 0 and len(run.events) - 1 - stored.epoch < 6
        return run, stored.epoch

    (workspace.folder / "uninterrupted").mkdir()
    shutil.copyfile(workspace.results / "mlflow.db", workspace.folder / "uninterrupted" / "mlflow.db")
    first, first_epoch = interrupt(7, worker=True)
    assert first.status == "killed"
    assert not list((workspace.results / "artifacts").rglob("checkpoint*"))
    second, second_epoch = interrupt(len(first.events) + 3, worker=False)
    assert second.status is None
    status, printed = end(workspace.start(*request))
    assert status == 0, printed
    (run,) = workspace.runs()
    assert run.attempts == ["1", "2"]
    assert [event.get("epoch") for event in run.events] == [None, *range(1, 41)]
    assert run.result["timing"]["resumed_from_epoch"] == second_epoch > first_epoch
    for attempt, epoch in ((first, first_epoch), (second, second_epoch)):
        assert run.events[1 : epoch + 1] == attempt.events[1 : epoch + 1]
        assert run.events[epoch + 1 :][0] not in attempt.events
    assert run.result["timing"]["train_s"] == sum(epoch["train_s"] for epoch in run.result["epochs"])
    check_consistent(workspace)
    assert not list(workspace.results.rglob("checkpoint*"))
    status, printed = end(workspace.start(*common, "results_dir=uninterrupted"))
    assert status == 0, printed
    uninterrupted = RunFolder(workspace.folder / "uninterrupted" / "runs" / run.folder.run_id)
    whole = replace(run, folder=uninterrupted, result=uninterrupted.result() or {})
    assert "resumed_from_epoch" not in whole.result["timing"]
    assert numbers(run) == numbers(whole)
    assert same_end(run.folder, uninterrupted)


def test_which_runs_resume(workspace: Workspace) -> None:
    """Catches: a run that failed, hung or was killed and starts from scratch; one that diverged or is forced,
    and resumes; a checkpoint that is not deleted after use."""
    # in float32 the checkpoint would be rounded: the NumPy reference computes in float64
    sweep = ("seed=range(4)", "train.epochs=4", "checkpoint.every_epochs=1", "precision=float64")
    workspace.plant({0: "raise", 1: "kill", 2: "hang", 3: "nan"})
    assert end(workspace.sweep(*sweep, "timeout_s=4"))[0] == 1
    interrupted = workspace.runs()
    assert [run.status for run in interrupted] == ["failed", "killed", "timeout", "diverged"]
    assert [run.folder.checkpoint.exists() for run in interrupted] == [True, True, True, False]
    interrupted[1].folder.checkpoint.write_bytes(b"")
    workspace.plant({})
    assert end(workspace.sweep(*sweep))[0] == 1  # the divergence stays
    resumed = workspace.runs()[:3]
    assert [run.result["timing"].get("resumed_from_epoch") for run in resumed] == [1, None, 1]
    assert f"the checkpoint is set aside as {UNUSABLE}: it can't be read (" in resumed[1].folder.log_tail()
    check_consistent(workspace)
    workspace.plant({0: "raise"})
    assert end(workspace.sweep(*sweep, "force=true"))[0] == 1
    assert workspace.runs()[0].folder.checkpoint.exists()
    workspace.plant({})
    status, printed = end(workspace.sweep(*sweep, "force=true"))
    assert status == 0, printed
    forced = workspace.runs()
    assert not any("resumed_from_epoch" in run.result["timing"] for run in forced)
    assert not list(workspace.results.rglob(CHECKPOINT))
    assert [numbers(run) for run in resumed] == [numbers(run) for run in forced[:3]]
    check_consistent(workspace)


def other_weights(path: Path) -> None:
    arrays = npz.load(path)
    name = next(name for name in arrays if name.startswith("slots/"))
    arrays[name] = np.zeros(1)
    npz.save(path, arrays)


def of_another_run(path: Path) -> None:
    arrays = npz.load(path)
    npz.save(path, arrays | {"run_id": np.frombuffer(b"0123456789abcdef", np.uint8)})


def other_epochs(path: Path) -> None:
    arrays = npz.load(path)
    npz.save(path, arrays | {"epochs": np.asarray(7)})


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "flipped": flipped,
    "json": lambda path: path.write_text('{"epoch": 3}'),
    "weights": other_weights,
    "run": of_another_run,
    "epochs": other_epochs,
}


def test_what_a_kill_may_leave(adapters: Adapters, tmp_path: Path) -> None:
    """Catches: a truncated, damaged or exchanged checkpoint that fails the run or is used; a partial new file
    that replaces the old one or is never deleted; a pruned run that cannot be completed."""
    torch = adapters("torch", "float32")
    pruned_results = tmp_path / "pruned"
    overrides = ("framework=torch", "data=iris", "model.dropout=0.2", "train.epochs=5", "certify=off")
    with composing():
        config = config_of(f"results_dir={pruned_results}", "checkpoint.every_epochs=1", *overrides)
    (run,) = prepare([config], RunInputs())
    run.folder.write_job(to_plain(run.job))
    shutil.copytree(pruned_results, tmp_path / "whole")

    def copied(name: str) -> RunFolder:
        return RunFolder(tmp_path / name / "runs" / run.job.run_id)

    def do(folder: RunFolder, epochs: int | None = None) -> dict[str, Any]:
        result: dict[str, Any] = torch.call(
            "tests.support.adapter_cases:do_run", folder=str(folder.path), epochs=epochs
        )
        return result

    whole = do(copied("whole"))
    assert whole["status"] == "finished", whole["error"]
    pruned = do(run.folder, 4)
    assert (pruned["status"], pruned["error"]) == ("pruned", None)
    assert pruned["metrics"] == pruned["epochs"][-1]["metrics"] == whole["epochs"][3]["metrics"]
    partial = b"PK\x03\x04 the first bytes of an npz file"
    (run.folder.path / f".{CHECKPOINT}.0a1b.tmp").write_bytes(partial)
    for name, damage in {"": lambda path: None, "missing": Path.unlink, **DAMAGES}.items():
        shutil.copytree(pruned_results, tmp_path / f"with {name}")
        folder = copied(f"with {name}")
        damage(folder.checkpoint)
        result = do(folder)
        assert result["status"] == "finished", (name, result["error"])
        assert result["timing"].get("resumed_from_epoch") == (None if name else 3), name
        assert [e["metrics"] for e in result["epochs"]] == [e["metrics"] for e in whole["epochs"]], name
        assert same_end(folder, copied("whole")), name
        assert (folder.path / UNUSABLE).exists() == (name in DAMAGES), name
        assert not folder.checkpoint.exists() and not list(folder.path.glob(".*.tmp")), name


def test_a_kill_while_a_checkpoint_is_written(tmp_path: Path) -> None:
    """Catches: weights of one epoch stored with the state or the epochs of another."""
    path = tmp_path / CHECKPOINT
    child = os.fork()
    if child == 0:
        try:
            for epoch in itertools.count(1):
                values = np.full(200_000, epoch, np.float32)
                state = State(epoch, 0.1, {"a/m": values}, {})
                checkpoint.save(path, "a", {"a": values}, state, [{"epoch": n + 1} for n in range(epoch)])
        finally:
            os._exit(1)
    last = 0
    while last < 15:
        last = check_whole(path)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert check_whole(path) >= last
    with pytest.raises(UnusableError, match="of run a"):
        checkpoint.load(path, "b")


def check_whole(path: Path) -> int:
    """Check that a checkpoint is of a single epoch; return that epoch."""
    stored = checkpoint.load(path, "a")
    if stored is None:
        return 0
    assert all((values == stored.epoch).all() for values in (stored.weights["a"], stored.state.slots["a/m"]))
    assert (stored.state.steps, len(stored.events), stored.events[-1]["epoch"]) == (stored.epoch,) * 3
    return stored.epoch


def test_when_a_checkpoint_is_due() -> None:
    """Catches: checkpoints of short runs; a checkpoint at every epoch after the first minutes; a null read as
    0."""
    by_clock = CheckpointTimer(CheckpointConfig(), 100.0)
    assert [by_clock.is_due(epoch, now) for epoch, now in enumerate((100, 399, 400, 401, 699, 700), 1)] == [
        *(False, False, True, False, False, True)
    ]
    counted = CheckpointTimer(CheckpointConfig(3, None), 0.0)
    assert [epoch for epoch in range(1, 10) if counted.is_due(epoch, 1e9)] == [3, 6, 9]
    never = CheckpointTimer(CheckpointConfig(None, None), 0.0)
    assert not any(never.is_due(epoch, 1e9) for epoch in range(1, 10))


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("checkpoint.every_epochs=0", "checkpoint.every_epochs"),
        ("checkpoint.every_epochs=1.5", "checkpoint.every_epochs"),
        ("checkpoint.every_minutes=0", "checkpoint.every_minutes"),
        ("+checkpoint.minutes=1", "checkpoint"),
    ],
)
def test_an_invalid_interval_is_refused(override: str, key: str) -> None:
    """Catches: an invalid interval that is read as 'always' or 'never'."""
    with composing(), pytest.raises(ConfigError) as caught:
        config_of(override)
    assert [mistake.key.startswith(key) for mistake in caught.value.mistakes] == [True]


def test_a_run_that_is_pruned(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a worker that does not wait for the decision, or reads it as a task; a pruned run that counts
    as failed or as finished, or has test metrics; a resumed run whose earlier epochs are not submitted."""
    assert end(workspace.sweep("seed=9"))[0] == 0
    config = workspace.runs()[0].config | {"checkpoint": {"every_epochs": 1, "every_minutes": None}}
    monkeypatch.chdir(workspace.folder)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(FAULTY.parents[1]), str(FAULTY))))
    monkeypatch.setenv("FAULTS", str(workspace.folder / "faults.json"))
    configs = [RunConfig.parse({**config, "seed": seed}) for seed in range(3)]
    decisions: list[tuple[int, int]] = []

    def should_continue(number: int, record: Any) -> bool:
        decisions.append((number, record["epoch"]))
        return bool(number != 1 or record["epoch"] < 2)

    # one session each: MLflow lags behind and may miss an attempt that is immediately followed by another
    with Session(reporter()) as session:
        first = session.execute(configs, should_continue=should_continue)
    with Session(reporter()) as session:
        earlier = session.execute(configs[1:2], should_continue=lambda number, record: False)
    with Session(reporter()) as session:
        plain = session.execute(configs[1:2])
    assert decisions == [(0, 1), (0, 2), (0, 3), (1, 1), (1, 2), (2, 1), (2, 2), (2, 3)]
    assert [outcome.finished for outcome in first + earlier + plain] == [True, False, True, False, True]
    assert not any(outcome.failed for outcome in first + earlier + plain)
    (row,) = rows(first)
    assert (row.runs, row.failed, row.pruned) == (3, 0, 1)
    pruned = first[1].result
    assert outcome_text(pruned).startswith("pruned at val/accuracy ")
    assert pruned["metrics"].keys() == {"train/loss", "val/loss", "val/accuracy", "val/f1"}
    assert plain[0].result["timing"]["resumed_from_epoch"] == 1
    attempts = [workspace.runs()[1].folder.path / "attempts" / number for number in "12"]
    trained = [[e["epoch"] for e in (RunFolder(path).result() or {})["epochs"]] for path in attempts]
    assert trained == [[1, 2], [1]]
    check_consistent(workspace)
    old = [tracked for tracked in workspace.tracked() if tracked.tags["status"] == "pruned"]
    assert [(tracked.status, tracked.active) for tracked in old] == [("FINISHED", False)] * 2
