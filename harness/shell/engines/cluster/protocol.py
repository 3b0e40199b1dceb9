"""The extension point for clusters: what the cluster engine needs to open slots on nodes and use them.

A slot executes one run at a time. A new cluster implements `Cluster` and `RemoteSlot`; a node's side is
`harness.shell.engines.cluster.node.NodeAgent`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from harness.shell.runs.records import PreparedRun


class SlotLostError(Exception):
    """A slot is gone or could not be opened: its node died, its job was cancelled; the message says why."""


class NodeRefusedError(Exception):
    """A node can't execute any run of this sweep; the message says why."""


@dataclass(frozen=True)
class SlotResources:
    """What a slot needs: cores, and a GPU or none; `sharing` slots may share one GPU or node."""

    threads: int
    gpu: bool
    sharing: int = 1

    @classmethod
    def of(cls, runs: Sequence[PreparedRun]) -> SlotResources:
        """Enough for each of the runs."""
        gpu = any(run.config.device != "cpu" for run in runs)
        return cls(max(run.config.threads for run in runs), gpu, max(run.config.workers for run in runs))

    def covers(self, other: SlotResources) -> bool:
        """Whether a slot with these resources is sufficient for the other ones."""
        enough = self.threads >= other.threads and self.gpu >= other.gpu
        return enough and self.sharing == other.sharing


class RemoteSlot(Protocol):
    """A slot on a node. One thread uses it; another thread may close it at the same time."""

    @property
    def name(self) -> str:
        """The name for display."""
        ...

    @property
    def concurrent_runs(self) -> int:
        """How many other slots of this sweep may be on the same machine."""
        ...

    def warm_up(self, job: Mapping[str, Any]) -> None:
        """Start the worker that a job needs, and wait for it; raises SlotLostError."""
        ...

    def run(self, request: Mapping[str, Any], files: Mapping[str, Path]) -> Iterator[Mapping[str, Any]]:
        """Execute a run (see `node`) with these files of the parent, and yield the node's messages.

        Raises SlotLostError.
        """
        ...

    def continue_or_stop(self, should_continue: bool) -> None:
        """Answer an `epoch` message of a prunable run; raises SlotLostError."""
        ...

    def close(self, kill: bool) -> None:
        """Release the slot; `kill` does not wait for a run that executes in it."""
        ...


class Cluster(Protocol):
    """Opens slots."""

    @property
    def startup_wait_s(self) -> float:
        """How long a sweep waits for its first slots, so that no run is timed during others' imports."""
        ...

    @property
    def wait_s(self) -> float:
        """How long runs wait for a node when none is left."""
        ...

    def check(self, runs: Sequence[PreparedRun]) -> None:
        """Raise ConfigError for runs that this cluster can't execute, and if a package is missing."""
        ...

    def connect(self, resources: SlotResources, results_dir: Path) -> None:
        """Prepare to open slots with these resources; called before each portion of a sweep.

        Raises ConfigError.
        """
        ...

    def slot_ids(self) -> Sequence[str]:
        """The ids of all slots that could be open now; they change as nodes join and leave."""
        ...

    def open(self, slot_id: str, give_up: Callable[[], bool]) -> RemoteSlot | None:
        """Open a slot and wait until it is ready; returns None once `give_up` returns true.

        Raises SlotLostError, NodeRefusedError.
        """
        ...

    def close(self, kill: bool) -> None:
        """Leave the cluster; slots that are still open are closed."""
        ...
