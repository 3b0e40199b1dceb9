"""What a node does with an order, without a cluster around it: the same process, a folder of its own."""

from __future__ import annotations

import fcntl
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.core.validation import to_plain
from harness.shell.engines.cluster.node import PREFIX, NodeAgent, unfit
from harness.shell.runs.inputs import RunInputs
from harness.shell.runs.prepare import prepare
from harness.shell.runs.records import PreparedRun
from tests.support.compose import composing, config_of


@pytest.fixture
def run(workdir: Path) -> PreparedRun:
    with composing():
        config = config_of("data=iris", "train.epochs=3", "limit=off", "checkpoint.every_epochs=1")
    return prepare([config], RunInputs())[0]


@pytest.fixture
def post(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[NodeAgent]:
    temporary = workdir / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    post = NodeAgent()
    yield post
    post.close()
    assert list(temporary.iterdir()) == []


def order_of(run: PreparedRun, judged: bool = False, **changes: Any) -> dict[str, Any]:
    return {"job": to_plain(run.job) | changes, "judged": judged, "program": run.program}


def test_an_order(run: PreparedRun, post: NodeAgent) -> None:
    """Catches: a file that does not come back, a result that comes before what belongs to it, data that are
    sent twice, a run's folder that stays on the node, a worker that is started anew for each run."""
    name = run.job.data_file
    assert post.lacks([name]) == [name]
    post.put(name, (run.results_dir / name).read_bytes())
    assert post.lacks([name]) == []
    said = []
    for message in post.run(
        order_of(run, judged=True)
    ):  # so that it waits with a checkpoint until it is told
        said.append(message)
        if message["event"] == "epoch":
            post.judge(True)
    epochs = [message["epoch"] for message in said if message["event"] == "epoch"]
    assert epochs == [1, 2, 3]
    files = [message["name"] for message in said if message["event"] == "file"]
    assert set(files[:-4]) == {"checkpoint.npz"}
    assert files[-4:] == ["worker.log", "state.npz", "weights.npz", "result.json"]
    assert said[-1] == {"event": "ended"}
    result = json.loads(said[-2]["content"])
    assert result["status"] == "finished"
    again = list(post.run(order_of(run, run_id="another")))
    pids = {message["pid"] for message in said + again if message["event"] == "started"}
    assert len(pids) == 1


def test_the_limit_is_that_of_the_node(run: PreparedRun, post: NodeAgent, own_cache: Path) -> None:
    """Catches: a run that is held against nothing, or against the machine that it was sent from; a limit that
    is measured while a run is timed; one that each place of a node measures anew."""
    config = run.job.config | {"limit": "auto"}
    name = run.job.data_file
    post.put(name, (run.results_dir / name).read_bytes())
    post.warm(order_of(run, config=config)["job"])
    assert len(list((own_cache / "machine").iterdir())) == 1
    said = list(post.run(order_of(run, config=config)))
    assert [message["event"] for message in said[:3]] == ["note", "limit", "started"]
    assert "GFLOP/s" in said[0]["message"]
    metrics = json.loads(said[-2]["content"])["metrics"]
    assert metrics["speed/share_of_limit"] == metrics["speed/gflops"] / said[1]["gflops"]
    (kept,) = (own_cache / "machine").iterdir()  # of a quiet machine, or it would be measured again
    kept.write_text(kept.read_text().replace('"disturbed": true', '"disturbed": false'))
    other = NodeAgent()
    try:
        other.put(name, (run.results_dir / name).read_bytes())
        again = list(other.run(order_of(run, config=config)))
    finally:
        other.close()
    assert again[0] == said[1]  # no news, the same limit


def test_a_node_with_other_versions(run: PreparedRun, post: NodeAgent) -> None:
    """Catches: a run that is recorded with versions which it didn't have."""
    wanted = run.job.versions | {"torch": "0.4.1"}
    here = run.job.versions["torch"]
    (said,) = post.run(order_of(run, versions=wanted))
    assert said["event"] == "refused"
    assert said["message"].endswith(f"has torch {here} (the sweep has 0.4.1)")
    assert unfit(run.config, run.job.versions) == ""


def test_what_a_killed_place_left(post: NodeAgent, workdir: Path) -> None:
    """Catches: data sets that fill a node's disk, sweep by sweep; a living place's folder that is removed."""
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
    assert post.lacks(["data/x"]) == ["data/x"]
