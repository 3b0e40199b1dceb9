"""A sweep on a Ray cluster of two nodes, both on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.clusters import SWEEP, check_retried_once, kill_tree, two_are_running
from tests.support.workspace import Workspace, check_consistent, cleanup, end, wait_until

pytest.importorskip("ray", reason="the extra 'ray' is not installed")

NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20}


@pytest.fixture
def workspace(tmp_path: Path, template: Path) -> Iterator[Workspace]:
    with cleanup(Workspace(tmp_path, template)) as workspace:
        yield workspace


@pytest.fixture
def cluster(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A cluster of two nodes with one core each."""
    from ray.cluster_utils import Cluster

    for name, value in (workspace.environment | {"RAY_USAGE_STATS_ENABLED": "0"}).items():
        monkeypatch.setenv(name, value)
    nodes = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    try:
        nodes.add_node(**NODE)
        yield nodes
    finally:
        nodes.shutdown()


@pytest.mark.slow
def test_loss_of_a_node(workspace: Workspace, cluster: Any) -> None:
    """Catches: a sweep that ends, hangs or omits a run when a node dies; a run that Ray repeats by itself; a
    run that starts from the beginning although its checkpoint was sent back; a loss without a message."""
    (second,) = cluster.worker_nodes
    workspace.plant({"*": "slow"})
    sweep = ("hydra/launcher=ray", f"hydra.launcher.address={cluster.address}", *SWEEP)
    process = workspace.sweep(*sweep)
    wait_until(lambda: two_are_running(workspace), process)
    (raylet,) = second.all_processes["raylet"]
    kill_tree(raylet.process.pid)
    status, printed = end(process)
    assert status == 0, printed
    check_retried_once(workspace, printed)
    status, printed = end(workspace.sweep(*sweep))
    assert (status, "nothing to do" in printed) == (0, True), printed
    cluster.shutdown()
    wait_until(lambda: not workspace.processes())
    check_consistent(workspace)
