"""What holds of a sweep on any cluster one of whose places was killed in the middle of a run."""

from __future__ import annotations

import contextlib

import psutil

from harness.core.runs.run_folder import RunFolder
from tests.support.workspace import Workspace

EPOCHS = 12
RUNS = 3
SWEEP = (f"seed=range({RUNS})", f"train.epochs={EPOCHS}", "checkpoint.every_epochs=1", "limit=auto")


def kill_tree(pid: int) -> None:
    """End a process and whatever it started at once, as the death of a machine would."""
    process = psutil.Process(pid)
    for one in (process, *process.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()


def two_under_way(workspace: Workspace) -> bool:
    """Whether two runs go on at a time, each with a checkpoint that came back."""
    going = [run for run in workspace.runs() if run.status is None]
    return sum(run.folder.checkpoint.exists() and len(run.events) < 5 for run in going) == 2


def check_done_once_more(workspace: Workspace, printed: str) -> None:
    """All runs are finished; one was done again, from where it was, which its folder and MLflow tell."""
    assert "was lost" in printed and "is done again" in printed, printed
    assert len(printed.splitlines()) < 15, printed
    runs = workspace.runs()
    assert [run.status for run in runs] == ["finished"] * RUNS
    for run in runs:
        assert [event.get("epoch") for event in run.events] == [None, *range(1, EPOCHS + 1)]
        left = {path.name for path in run.folder.path.iterdir()}
        assert {"weights.npz", "state.npz", "worker.log", "result.json"} <= left
        assert "checkpoint.npz" not in left
        assert (run.folder.job() or {})["limit_gflops"] > 0
    (lost,) = [run for run in runs if run.attempts]
    assert lost.result["timing"]["resumed_from_epoch"] >= 1
    before = RunFolder(lost.folder.path / "attempts" / "1").result() or {}
    assert (before["status"], before["error"]["type"]) == ("killed", "node")
    assert before["epochs"]
    assert [run.status for run in workspace.tracked() if run.active] == ["FINISHED"] * RUNS
    assert [study.status for study in workspace.tracked("study")] == ["FINISHED"]
