"""A run's folder: whole after a kill at any instant, and held by one process at a time."""

from __future__ import annotations

import io
import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from harness.core.runs import run_folder
from harness.core.runs.run_folder import TAIL_BYTES, RunFolder, last_lines
from harness.core.training.training_state import State


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "runs" / "a")
    folder.write_job({"run_id": "a"})
    return folder


def test_half_a_line_is_passed_over(folder: RunFolder) -> None:
    """Catches: a folder that can't be read because its process was killed while it wrote."""
    assert folder.events() == []
    folder.append_event({"event": "started"})
    folder.append_event({"event": "epoch", "epoch": 1})
    with (folder.path / "events.jsonl").open("a") as file:
        file.write('{"event": "epoch", "epo')
    assert folder.events() == [{"event": "started"}, {"event": "epoch", "epoch": 1}]


def test_an_attempt_is_set_aside_whole(folder: RunFolder) -> None:
    """Catches: an earlier attempt's file in the new one, an attempt that is lost or overwritten, also after
    somebody deleted one, and what a kill between writing and renaming leaves lying about for ever."""
    folder.set_aside()
    assert not (folder.path / "attempts").exists()
    for attempt in (1, 2, 3):
        folder.append_event({"event": "started", "attempt": attempt})
        folder.write_result({"status": "failed", "attempt": attempt})
        (folder.path / "worker.log").write_text("words")
        folder.write_end({"a": np.zeros(1)}, State(3, 0.1, {}, {}), 1)
        (folder.path / f".result.json.{attempt}.tmp").write_text('{"stat')
        folder.set_aside()
        assert sorted(path.name for path in folder.path.iterdir()) == ["attempts", "job.json"]
        kept = RunFolder(folder.path / "attempts" / str(attempt))
        assert kept.events() == [{"event": "started", "attempt": attempt}]
        assert kept.result() == {"status": "failed", "attempt": attempt}
        assert kept.log_tail() == "words"
        assert (kept.path / "weights.npz").exists() and (kept.path / "state.npz").exists()
        if attempt == 2:
            for path in (folder.path / "attempts" / "1").iterdir():
                path.unlink()
            (folder.path / "attempts" / "1").rmdir()


def test_a_write_that_fails_leaves_the_old_file(folder: RunFolder) -> None:
    """Catches: a file written in place, or a temporary one left behind by an error."""
    with pytest.raises(TypeError):
        folder.write_job({"run_id": object()})
    assert folder.job() == {"run_id": "a"}
    assert [path.name for path in folder.path.iterdir()] == ["job.json"]


def test_a_kill_while_writing(folder: RunFolder) -> None:
    """Catches: a result that can be seen before it is whole."""
    child = os.fork()
    if child == 0:
        while True:
            folder.write_result({"status": "finished", "metrics": dict.fromkeys(map(str, range(2000)), 0.5)})
    while folder.result() is None:
        time.sleep(0.001)
    for _ in range(200):
        assert len((folder.result() or {})["metrics"]) == 2000
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert len((folder.result() or {})["metrics"]) == 2000


def test_the_lock_is_let_go(folder: RunFolder) -> None:
    """Catches: a lock that a forked process, such as a data loader's, goes on holding."""
    with folder.locked(), pytest.raises(BlockingIOError), folder.locked(wait=False):
        pass
    with folder.locked():
        child = os.fork()
        if child == 0:
            signal.pause()
    try:
        with folder.locked(wait=False):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_the_end_of_a_long_log(folder: RunFolder) -> None:
    """Catches: a log of gigabytes read whole, more or other lines than the last, bytes that are no text."""
    log = io.BytesIO(b"start\n" + b"\xff" * 3 * TAIL_BYTES + b"\nlast\n")
    tail = last_lines(log)
    assert tail.endswith("\nlast")
    assert len(tail) <= TAIL_BYTES
    assert last_lines(io.BytesIO(b"a\nb\nc\n"), lines=2) == "b\nc"
    assert folder.log_tail() == ""


def test_runs_are_folders_with_a_job(folder: RunFolder, tmp_path: Path) -> None:
    """Catches: a folder of something else, or one that a kill left empty, taken for a run."""
    (tmp_path / "runs" / "empty").mkdir()
    (tmp_path / "runs" / "file").write_text(json.dumps({}))
    assert [found.run_id for found in run_folder.runs(tmp_path)] == ["a"]
