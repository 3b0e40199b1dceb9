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


def test_a_partial_line_is_ignored(folder: RunFolder) -> None:
    """Catches: a folder that can't be read because its process was killed while it wrote."""
    assert folder.events() == []
    folder.append_event({"event": "started"})
    folder.append_event({"event": "epoch", "epoch": 1})
    with (folder.path / "events.jsonl").open("a") as file:
        file.write('{"event": "epoch", "epo')
    assert folder.events() == [{"event": "started"}, {"event": "epoch", "epoch": 1}]


def test_an_attempt_is_set_aside_whole(folder: RunFolder) -> None:
    """Catches: an earlier attempt's file in the new one, an attempt that is lost or overwritten (also after a
    user deleted one), and temporary files that a kill between writing and renaming leaves for ever."""
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
        stored = RunFolder(folder.path / "attempts" / str(attempt))
        assert stored.events() == [{"event": "started", "attempt": attempt}]
        assert stored.result() == {"status": "failed", "attempt": attempt}
        assert stored.log_tail() == "words"
        assert (stored.path / "weights.npz").exists() and (stored.path / "state.npz").exists()
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


def test_the_lock_is_released(folder: RunFolder) -> None:
    """Catches: a lock that a forked process, such as a data loader's, continues to hold."""
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
    """Catches: a log of gigabytes read whole, lines other than the last ones, bytes that are not valid
    UTF-8."""
    log = io.BytesIO(b"start\n" + b"\xff" * 3 * TAIL_BYTES + b"\nlast\n")
    tail = last_lines(log)
    assert tail.endswith("\nlast")
    assert len(tail) <= TAIL_BYTES
    assert last_lines(io.BytesIO(b"a\nb\nc\n"), lines=2) == "b\nc"
    assert folder.log_tail() == ""


def test_runs_are_folders_with_a_job(folder: RunFolder, tmp_path: Path) -> None:
    """Catches: an unrelated folder, or one that a kill left empty, that counts as a run."""
    (tmp_path / "runs" / "empty").mkdir()
    (tmp_path / "runs" / "file").write_text(json.dumps({}))
    assert [run.run_id for run in run_folder.runs(tmp_path)] == ["a"]
