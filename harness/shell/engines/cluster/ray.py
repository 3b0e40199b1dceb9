"""Places on the nodes of a Ray cluster: an actor each, pinned to its node.

This speaks Ray's core API alone. Hydra's own Ray launcher (hydra-ray-launcher) is not maintained, asks for
cloudpickle < 3, starts a process for each run, and has Ray do a run silently up to three times more when its
process died. Here Ray does nothing again by itself (`max_restarts` and `max_task_retries` are 0): what a lost
place costs is the engine's affair. An actor holds the cores (and the card) that Ray gave it, keeps its
workers warm, and yields what they say as text; it dies with the parent, and its workers with it.

Cards are Ray's to give out: it sets CUDA_VISIBLE_DEVICES for the actor, whose workers inherit it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.core.machine import host as machine
from harness.core.validation import ConfigError, Mistake
from harness.shell.engines.cluster.node import NodeAgent, about
from harness.shell.engines.cluster.options import KEY, RayOptions, require
from harness.shell.engines.cluster.protocol import LostError, Need
from harness.shell.runs.records import PreparedRun

POLL_S = 0.5
CLOSE_TIMEOUT_S = 5.0
CONNECT_TIMEOUT_S = 10.0


class RayNodeAgent:
    """A `NodeAgent` as Ray's actor. `judge` comes on another thread than `run`."""

    def __init__(self) -> None:
        self._post = NodeAgent()

    def about(self) -> str:
        """Who this is, as JSON."""
        return json.dumps(about())

    def lacks(self, names: list[str]) -> list[str]:
        """See `NodeAgent`."""
        return self._post.lacks(names)

    def put(self, name: str, content: bytes) -> None:
        """See `NodeAgent`."""
        self._post.put(name, content)

    def warm(self, job: str) -> None:
        """See `NodeAgent`."""
        self._post.warm(json.loads(job))

    def run(self, order: str) -> Iterator[str | tuple[str, bytes]]:
        """See `NodeAgent`: messages as JSON, files as name and content."""
        for message in self._post.run(json.loads(order)):
            if message["event"] == "file":
                yield message["name"], message["content"]
            else:
                yield json.dumps(message)

    def judge(self, go: bool) -> None:
        """See `NodeAgent`."""
        self._post.judge(go)

    def close(self) -> None:
        """See `NodeAgent`."""
        self._post.close()


class RaySlot:
    """See `harness.shell.engines.cluster.protocol.RemoteSlot`."""

    def __init__(self, name: str, beside: int, actor: Any, shelf: _FileCache) -> None:
        self.name, self.beside = name, beside
        self._actor, self._shelf = actor, shelf

    def warm(self, job: Mapping[str, Any]) -> None:
        """See `Place`."""
        _get(self._actor.warm.remote(json.dumps(job)))

    def run(self, order: Mapping[str, Any], files: Mapping[str, Path]) -> Iterator[Mapping[str, Any]]:
        """See `Place`."""
        for name in _get(self._actor.lacks.remote(list(files))):
            _get(self._actor.put.remote(name, self._shelf.get(name, files[name])))
        for answer in self._actor.run.options(num_returns="streaming").remote(json.dumps(order)):
            said = _get(answer)
            if isinstance(said, str):
                yield json.loads(said)
            else:
                yield {"event": "file", "name": said[0], "content": said[1]}

    def judge(self, go: bool) -> None:
        """See `Place`."""
        _get(self._actor.judge.remote(go))

    def close(self, kill: bool) -> None:
        """See `Place`."""
        import ray

        if not kill:
            with contextlib.suppress(ray.exceptions.RayError):
                ray.get(self._actor.close.remote(), timeout=CLOSE_TIMEOUT_S)
        ray.kill(self._actor)


class RayCluster:
    """See `harness.shell.engines.cluster.protocol.Cluster`."""

    settle_s = 60.0

    def __init__(self, options: RayOptions) -> None:
        self._options = options
        self.wait_s = options.wait_s
        self._need = Need(1, False)
        self._connected = False
        self._shelf = _FileCache()

    def check(self, runs: Sequence[PreparedRun]) -> None:
        """Raise ConfigError where Ray is missing, or the address is none that can work."""
        require("ray", "ray")
        address = self._options.address
        if address not in (None, "auto") and not re.fullmatch(r"[\w.-]+:\d+", address):
            advice = "null, auto, or host:port; the sweep is started on a machine of the cluster"
            raise ConfigError([Mistake(f"{KEY}.address", f"{address!r} is none of a Ray cluster", advice)])

    def connect(self, need: Need, results_dir: Path) -> None:
        """Join the cluster, or start one; raises ConfigError where there is none, or no node large enough."""
        self._need = need
        if not self._connected:
            self._connect()
        if not self.sites():
            wanted = f"a run needs threads={need.threads}" + " and a card" * need.gpu
            nodes = ", ".join(f"{_name(node)} ({_resources(node)})" for node in _nodes())
            problem = f"{wanted}; no node of the Ray cluster has that: {nodes or 'there is none'}"
            raise ConfigError([Mistake("hydra/launcher", problem)])

    def _connect(self) -> None:
        import ray
        from ray._private import worker

        # where a node died, Ray prints pages of its log onto our standard output; we tell of it ourselves
        worker.print_to_stdstream = lambda *arguments, **options: None
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        address = self._options.address
        quiet = {"log_to_driver": False, "logging_level": logging.ERROR, "include_dashboard": None}
        own = {"address": "local", "num_cpus": machine.usable_cores(), "include_dashboard": False}
        before = signal.getsignal(signal.SIGTERM)  # which Ray takes for itself
        try:
            if address not in (None, "auto"):  # Ray itself asks for minutes
                host, _, port = address.rpartition(":")
                socket.create_connection((host, int(port)), CONNECT_TIMEOUT_S).close()
            ray.init(**(quiet | (own if address is None else {"address": address})))
        except (OSError, RuntimeError, ValueError) as error:
            problem = f"no Ray cluster answers at {address!r}: {_brief(error)}"
            advice = "null (start one here), auto, or host:port of a cluster that this machine belongs to"
            raise ConfigError([Mistake(f"{KEY}.address", problem, advice)]) from error
        finally:
            signal.signal(signal.SIGTERM, before)
        self._connected = True

    def sites(self) -> list[str]:
        """Node by node in turns, so that a few runs are spread over all."""
        ranked = sorted(
            (number, node["NodeID"]) for node in _nodes() for number in range(_places(node, self._need))
        )
        return [f"{node}/{number}" for number, node in ranked]

    def open(self, site: str, give_up: Callable[[], bool]) -> RaySlot | None:
        """See `Cluster`."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        node_id, _, number = site.rpartition("/")
        nodes = {node["NodeID"]: node for node in _nodes()}
        if node_id not in nodes:
            raise LostError("the node left the cluster")
        node, need = nodes[node_id], self._need
        kind: Any = ray.remote(RayNodeAgent)
        actor = kind.options(
            num_cpus=need.threads,
            num_gpus=1 / need.sharing if need.gpu else 0,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=2,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False),
        ).remote()
        there = actor.about.remote()
        while not ray.wait([there], timeout=POLL_S)[0]:
            if give_up():
                ray.kill(actor)
                return None
        _get(there)
        host = node["NodeManagerAddress"]
        beside = sum(_places(n, need) for n in nodes.values() if n["NodeManagerAddress"] == host) - 1
        name = _name(node) + (f" {int(number) + 1}" if _places(node, need) > 1 else "")
        return RaySlot(name, beside, actor, self._shelf)

    def close(self, kill: bool) -> None:
        """Leave the cluster; one that was started here is ended."""
        if self._connected:
            import ray

            ray.shutdown()
            self._connected = False


class _FileCache:
    """Files as nodes get them: data go into Ray's store once, and from there once to each node."""

    def __init__(self) -> None:
        self._kept: dict[str, Any] = {}
        self._lock = threading.Lock()

    def get(self, name: str, path: Path) -> Any:
        """A file's content, or Ray's reference to it."""
        import ray

        if not name.startswith("data/"):
            return path.read_bytes()
        with self._lock:
            if name not in self._kept:
                self._kept[name] = ray.put(path.read_bytes())
            return self._kept[name]


def _get(reference: Any) -> Any:
    """What an actor answers; raises LostError where it can't any more."""
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayError as error:
        raise LostError(_brief(error)) from error


def _nodes() -> list[dict[str, Any]]:
    import ray

    found: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [node for node in found if node["Alive"]]


def _name(node: Mapping[str, Any]) -> str:
    return str(node.get("NodeName") or node["NodeManagerAddress"])


def _resources(node: Mapping[str, Any]) -> str:
    has = node["Resources"]
    return f"cores: {has.get('CPU', 0):g}, cards: {has.get('GPU', 0):g}"


def _places(node: Mapping[str, Any], need: Need) -> int:
    """How many places a node has: as many as may share it, or each of its cards, if it has the cores."""
    has = node["Resources"]
    devices = int(has.get("GPU", 0)) if need.gpu else 1
    return min(need.sharing * devices, int(has.get("CPU", 0)) // need.threads)


def _brief(error: BaseException) -> str:
    """The first line that says what happened; Ray's messages are pages long."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if "died" in line or "unavailable" in line.lower() or "Error:" in line]
    return (told or lines or [type(error).__name__])[0][:200]
