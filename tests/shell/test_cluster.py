"""A node's agent without a cluster: requests are executed in a folder of its own."""

from __future__ import annotations

import fcntl
import json
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.core.validation import to_plain
from harness.shell.engines.cluster.node import PREFIX, NodeAgent, refusal
from harness.shell.runs.inputs import RunInputs
from harness.shell.runs.prepare import prepare
from harness.shell.runs.records import PreparedRun
from tests.support.compose import composing, config_of
from tests.support.workspace import wait_until


@pytest.fixture
def run(workdir: Path) -> PreparedRun:
    with composing():
        config = config_of("data=iris", "train.epochs=3", "limit=off", "checkpoint.every_epochs=1")
    return prepare([config], RunInputs())[0]


@pytest.fixture
def agent(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[NodeAgent]:
    temporary = workdir / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    agent = NodeAgent()
    yield agent
    agent.close()
    assert list(temporary.iterdir()) == []


def request_for(run: PreparedRun, prunable: bool = False, **changes: Any) -> dict[str, Any]:
    return {"job": to_plain(run.job) | changes, "prunable": prunable, "program": run.program}


def test_a_request(run: PreparedRun, agent: NodeAgent) -> None:
    """Catches: a file that is not sent back, a result sent before the files that belong to it, data sent
    twice, a run's folder that stays on the node, a new worker for each run."""
    name = run.job.data_file
    assert agent.missing_files([name]) == [name]
    agent.put(name, (run.results_dir / name).read_bytes())
    assert agent.missing_files([name]) == []
    messages = []
    # prunable, so that it waits after each checkpoint
    for message in agent.run(request_for(run, prunable=True)):
        messages.append(message)
        if message["event"] == "epoch":
            agent.continue_or_stop(True)
    epochs = [message["epoch"] for message in messages if message["event"] == "epoch"]
    assert epochs == [1, 2, 3]
    files = [message["name"] for message in messages if message["event"] == "file"]
    assert set(files[:-4]) == {"checkpoint.npz"}
    assert files[-4:] == ["worker.log", "state.npz", "weights.npz", "result.json"]
    assert messages[-1] == {"event": "ended"}
    result = json.loads(messages[-2]["content"])
    assert result["status"] == "finished"
    again = list(agent.run(request_for(run, run_id="another")))
    pids = {message["pid"] for message in messages + again if message["event"] == "started"}
    assert len(pids) == 1


def test_the_limit_is_that_of_the_node(run: PreparedRun, agent: NodeAgent, own_cache: Path) -> None:
    """Catches: a run without a limit, or with that of the machine that sent it; a limit measured while a run
    is timed; one that each slot of a node measures again."""
    config = run.job.config | {"limit": "auto"}
    name = run.job.data_file
    agent.put(name, (run.results_dir / name).read_bytes())
    agent.warm_up(request_for(run, config=config)["job"])
    assert len(list((own_cache / "machine").iterdir())) == 1
    messages = list(agent.run(request_for(run, config=config)))
    assert [message["event"] for message in messages[:3]] == ["note", "limit", "started"]
    assert "GFLOP/s" in messages[0]["message"]
    metrics = json.loads(messages[-2]["content"])["metrics"]
    assert metrics["speed/share_of_limit"] == metrics["speed/gflops"] / messages[1]["gflops"]
    (stored,) = (own_cache / "machine").iterdir()  # as if undisturbed, or it would be measured again
    stored.write_text(stored.read_text().replace('"disturbed": true', '"disturbed": false'))
    other = NodeAgent()
    try:
        other.put(name, (run.results_dir / name).read_bytes())
        again = list(other.run(request_for(run, config=config)))
    finally:
        other.close()
    assert again[0] == messages[1]  # no note, the same limit


def test_a_node_with_other_versions(run: PreparedRun, agent: NodeAgent) -> None:
    """Catches: a run recorded with versions that it did not use."""
    versions = run.job.versions | {"torch": "0.4.1"}
    here = run.job.versions["torch"]
    (message,) = agent.run(request_for(run, versions=versions))
    assert message["event"] == "refused"
    assert message["message"].endswith(f"has torch {here} (the sweep has 0.4.1)")
    assert refusal(run.config, run.job.versions) == ""


def test_close_during_a_run(run: PreparedRun, agent: NodeAgent) -> None:
    """Catches: an exception in `close` when the run's thread drops the worker that `close` ends, which left
    Slurm jobs alive forever after the death of the command."""
    agent.put(run.job.data_file, (run.results_dir / run.job.data_file).read_bytes())
    events = []

    def execute() -> None:
        for message in agent.run(request_for(run, prunable=True)):  # waits forever after the first epoch
            events.append(message["event"])

    thread = threading.Thread(target=execute)
    thread.start()
    wait_until(lambda: "epoch" in events)
    agent.close()
    thread.join(10.0)
    assert events[-2:] == ["exit", "ended"]
    assert agent.missing_files([run.job.data_file]) == [run.job.data_file]


def test_folders_of_killed_agents_are_removed(agent: NodeAgent, workdir: Path) -> None:
    """Catches: data sets that fill a node's disk, sweep by sweep; the removal of a living agent's folder."""
    temporary = workdir / "tmp"
    left, living = temporary / f"{PREFIX}left", temporary / f"{PREFIX}living"
    for folder in (left, living):
        (folder / "data").mkdir(parents=True)
        (folder / "lock").touch()
    with (living / "lock").open("r") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        other = NodeAgent()
        other.close()
        assert not left.exists()
        assert living.exists()
    NodeAgent().close()
    assert not living.exists()
    assert agent.missing_files(["data/x"]) == ["data/x"]
