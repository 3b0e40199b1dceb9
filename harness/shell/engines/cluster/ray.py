"""Slots on the nodes of a Ray cluster: one actor each, pinned to its node.

Only Ray's core API is used. Hydra's own Ray launcher (hydra-ray-launcher) is not maintained, requires
cloudpickle < 3, starts a process for each run, and lets Ray silently repeat a run up to three times when its
process died. Here Ray repeats nothing (`max_restarts` and `max_task_retries` are 0): the engine decides what
happens after a loss. An actor holds the cores (and the card) that Ray assigned to it, keeps its workers warm
and yields their messages as text. It ends with the parent, and its workers end with it.

Ray assigns the cards: it sets CUDA_VISIBLE_DEVICES for the actor, whose workers inherit it.
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
from harness.shell.engines.cluster.node import NodeAgent, identity
from harness.shell.engines.cluster.options import KEY, RayOptions, require
from harness.shell.engines.cluster.protocol import SlotLostError, SlotResources
from harness.shell.runs.records import PreparedRun

POLL_S = 0.5
CLOSE_TIMEOUT_S = 5.0
CONNECT_TIMEOUT_S = 10.0


class RayNodeAgent:
    """A `NodeAgent` as a Ray actor. Ray calls `continue_or_stop` on another thread than `run`."""

    def __init__(self) -> None:
        self._agent = NodeAgent()

    def identity(self) -> str:
        """The host and the process id, as JSON."""
        return json.dumps(identity())

    def missing_files(self, names: list[str]) -> list[str]:
        """See `NodeAgent`."""
        return self._agent.missing_files(names)

    def put(self, name: str, content: bytes) -> None:
        """See `NodeAgent`."""
        self._agent.put(name, content)

    def warm_up(self, job: str) -> None:
        """See `NodeAgent`."""
        self._agent.warm_up(json.loads(job))

    def run(self, request: str) -> Iterator[str | tuple[str, bytes]]:
        """See `NodeAgent`: messages as JSON, files as name and content."""
        for message in self._agent.run(json.loads(request)):
            if message["event"] == "file":
                yield message["name"], message["content"]
            else:
                yield json.dumps(message)

    def continue_or_stop(self, should_continue: bool) -> None:
        """See `NodeAgent`."""
        self._agent.continue_or_stop(should_continue)

    def close(self) -> None:
        """See `NodeAgent`."""
        self._agent.close()


class RaySlot:
    """See `harness.shell.engines.cluster.protocol.RemoteSlot`."""

    def __init__(self, name: str, concurrent_runs: int, actor: Any, file_cache: _FileCache) -> None:
        self.name, self.concurrent_runs = name, concurrent_runs
        self._actor, self._file_cache = actor, file_cache

    def warm_up(self, job: Mapping[str, Any]) -> None:
        """See `RemoteSlot`."""
        _get(self._actor.warm_up.remote(json.dumps(job)))

    def run(self, request: Mapping[str, Any], files: Mapping[str, Path]) -> Iterator[Mapping[str, Any]]:
        """See `RemoteSlot`."""
        for name in _get(self._actor.missing_files.remote(list(files))):
            _get(self._actor.put.remote(name, self._file_cache.get(name, files[name])))
        for reference in self._actor.run.options(num_returns="streaming").remote(json.dumps(request)):
            message = _get(reference)
            if isinstance(message, str):
                yield json.loads(message)
            else:
                yield {"event": "file", "name": message[0], "content": message[1]}

    def continue_or_stop(self, should_continue: bool) -> None:
        """See `RemoteSlot`."""
        _get(self._actor.continue_or_stop.remote(should_continue))

    def close(self, kill: bool) -> None:
        """See `RemoteSlot`."""
        import ray

        if not kill:
            with contextlib.suppress(ray.exceptions.RayError):
                ray.get(self._actor.close.remote(), timeout=CLOSE_TIMEOUT_S)
        ray.kill(self._actor)


class RayCluster:
    """See `harness.shell.engines.cluster.protocol.Cluster`."""

    startup_wait_s = 60.0

    def __init__(self, options: RayOptions) -> None:
        self._options = options
        self.wait_s = options.wait_s
        self._resources = SlotResources(1, False)
        self._connected = False
        self._file_cache = _FileCache()

    def check(self, runs: Sequence[PreparedRun]) -> None:
        """Raise ConfigError if Ray is missing or the address is malformed."""
        require("ray", "ray")
        address = self._options.address
        if address not in (None, "auto") and not re.fullmatch(r"[\w.-]+:\d+", address):
            advice = "null, auto, or host:port; the sweep is started on a machine of the cluster"
            raise ConfigError(
                [Mistake(f"{KEY}.address", f"{address!r} is not the address of a Ray cluster", advice)]
            )

    def connect(self, resources: SlotResources, results_dir: Path) -> None:
        """Join a cluster or start one; raises ConfigError if that fails or no node is large enough."""
        self._resources = resources
        if not self._connected:
            self._connect()
        if not self.slot_ids():
            required = f"a run needs threads={resources.threads}" + " and a card" * resources.gpu
            nodes = ", ".join(f"{_name(node)} ({_resources(node)})" for node in _nodes())
            problem = f"{required}; no node of the Ray cluster has that: {nodes or 'it has no nodes'}"
            raise ConfigError([Mistake("hydra/launcher", problem)])

    def _connect(self) -> None:
        import ray
        from ray._private import worker

        # when a node dies, Ray prints pages of its log to standard output; the engine reports the loss itself
        worker.print_to_stdstream = lambda *arguments, **options: None
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        address = self._options.address
        quiet = {"log_to_driver": False, "logging_level": logging.ERROR, "include_dashboard": None}
        own = {"address": "local", "num_cpus": machine.usable_cores(), "include_dashboard": False}
        before = signal.getsignal(signal.SIGTERM)  # Ray replaces the handler
        try:
            if address not in (None, "auto"):  # Ray itself would retry for minutes
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

    def slot_ids(self) -> list[str]:
        """The slots, alternating between the nodes, so that a few runs are spread over all of them."""
        ranked = sorted(
            (number, node["NodeID"])
            for node in _nodes()
            for number in range(_slots_of(node, self._resources))
        )
        return [f"{node}/{number}" for number, node in ranked]

    def open(self, slot_id: str, give_up: Callable[[], bool]) -> RaySlot | None:
        """See `Cluster`."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        node_id, _, number = slot_id.rpartition("/")
        nodes = {node["NodeID"]: node for node in _nodes()}
        if node_id not in nodes:
            raise SlotLostError("the node left the cluster")
        node, resources = nodes[node_id], self._resources
        kind: Any = ray.remote(RayNodeAgent)
        actor = kind.options(
            num_cpus=resources.threads,
            num_gpus=1 / resources.sharing if resources.gpu else 0,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=2,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False),
        ).remote()
        started = actor.identity.remote()
        while not ray.wait([started], timeout=POLL_S)[0]:
            if give_up():
                ray.kill(actor)
                return None
        _get(started)
        host = node["NodeManagerAddress"]
        on_host = [n for n in nodes.values() if n["NodeManagerAddress"] == host]
        concurrent_runs = sum(_slots_of(n, resources) for n in on_host) - 1
        name = _name(node) + (f" {int(number) + 1}" if _slots_of(node, resources) > 1 else "")
        return RaySlot(name, concurrent_runs, actor, self._file_cache)

    def close(self, kill: bool) -> None:
        """Leave the cluster; a cluster that was started here ends."""
        if self._connected:
            import ray

            ray.shutdown()
            self._connected = False


class _FileCache:
    """Files for the nodes: data sets go into Ray's store once, and from there to each node once."""

    def __init__(self) -> None:
        self._references: dict[str, Any] = {}
        self._lock = threading.Lock()

    def get(self, name: str, path: Path) -> Any:
        """A file's content, or Ray's reference to it."""
        import ray

        if not name.startswith("data/"):
            return path.read_bytes()
        with self._lock:
            if name not in self._references:
                self._references[name] = ray.put(path.read_bytes())
            return self._references[name]


def _get(reference: Any) -> Any:
    """The result of an actor's call; raises SlotLostError if the actor is gone."""
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayError as error:
        raise SlotLostError(_brief(error)) from error


def _nodes() -> list[dict[str, Any]]:
    import ray

    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [node for node in nodes if node["Alive"]]


def _name(node: Mapping[str, Any]) -> str:
    return str(node.get("NodeName") or node["NodeManagerAddress"])


def _resources(node: Mapping[str, Any]) -> str:
    total = node["Resources"]
    return f"cores: {total.get('CPU', 0):g}, cards: {total.get('GPU', 0):g}"


def _slots_of(node: Mapping[str, Any], resources: SlotResources) -> int:
    """The number of slots on a node: `sharing` per node, or per card, as far as its cores suffice."""
    total = node["Resources"]
    devices = int(total.get("GPU", 0)) if resources.gpu else 1
    return min(resources.sharing * devices, int(total.get("CPU", 0)) // resources.threads)


def _brief(error: BaseException) -> str:
    """The most informative line of an error; Ray's messages are pages long."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    informative = [
        line for line in lines if "died" in line or "unavailable" in line.lower() or "Error:" in line
    ]
    return (informative or lines or [type(error).__name__])[0][:200]
