"""Checks of a sweep on a cluster, one of whose slots was killed in the middle of a run."""

from __future__ import annotations

import contextlib

import psutil

from harness.core.runs.run_folder import RunFolder
from tests.support.workspace import Workspace

EPOCHS = 12
RUNS = 3
SWEEP = (f"seed=range({RUNS})", f"train.epochs={EPOCHS}", "checkpoint.every_epochs=1", "limit=auto")


def kill_tree(pid: int) -> None:
    """Kill a process and all its descendants at once, as a crash of the machine would."""
    process = psutil.Process(pid)
    for member in (process, *process.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()


def two_are_running(workspace: Workspace) -> bool:
    """Whether two runs are in progress at a time, each with a checkpoint that came back from its slot."""
    running = [run for run in workspace.runs() if run.status is None]
    return sum(run.folder.checkpoint.exists() and len(run.events) < 5 for run in running) == 2


def check_retried_once(workspace: Workspace, printed: str) -> None:
    """Check that all runs finished and one was retried from its checkpoint, in the run folder and in
    MLflow."""
    assert "was lost" in printed and "is repeated" in printed, printed
    assert len(printed.splitlines()) < 15, printed
    runs = workspace.runs()
    assert [run.status for run in runs] == ["finished"] * RUNS
    for run in runs:
        assert [event.get("epoch") for event in run.events] == [None, *range(1, EPOCHS + 1)]
        files = {path.name for path in run.folder.path.iterdir()}
        assert {"weights.npz", "state.npz", "worker.log", "result.json"} <= files
        assert "checkpoint.npz" not in files
        assert (run.folder.job() or {})["limit_gflops"] > 0
    (lost,) = [run for run in runs if run.attempts]
    assert lost.result["timing"]["resumed_from_epoch"] >= 1
    before = RunFolder(lost.folder.path / "attempts" / "1").result() or {}
    assert (before["status"], before["error"]["type"]) == ("killed", "node")
    assert before["epochs"]
    assert [run.status for run in workspace.tracked() if run.active] == ["FINISHED"] * RUNS
    assert [study.status for study in workspace.tracked("study")] == ["FINISHED"]
