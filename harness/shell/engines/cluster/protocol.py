"""What the engine of a cluster needs of one: places on nodes, in each of which one run at a time goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from harness.shell.runs.records import PreparedRun


class LostError(Exception):
    """A place is gone, or could not be had: its node died, its job was cancelled; the message says what."""


class RefusedError(Exception):
    """A node can't do the runs of this sweep, whichever; the message says why."""


@dataclass(frozen=True)
class Need:
    """What a place has to have: cores, a GPU or none, and how many places may share one."""

    threads: int
    gpu: bool
    sharing: int = 1

    @classmethod
    def of(cls, runs: Sequence[PreparedRun]) -> Need:
        """Enough for each of the runs."""
        gpu = any(run.config.device != "cpu" for run in runs)
        return cls(max(run.config.threads for run in runs), gpu, max(run.config.workers for run in runs))

    def covers(self, other: Need) -> bool:
        """Whether a place made for this is good enough for the other."""
        enough = self.threads >= other.threads and self.gpu >= other.gpu
        return enough and self.sharing == other.sharing


class RemoteSlot(Protocol):
    """Where runs go on, one at a time. One thread uses it, and another one may close it meanwhile."""

    @property
    def name(self) -> str:
        """For people."""
        ...

    @property
    def beside(self) -> int:
        """How many other places may be on the same machine."""
        ...

    def warm(self, job: Mapping[str, Any]) -> None:
        """Start the worker that a job needs, and wait for it; raises LostError."""
        ...

    def run(self, order: Mapping[str, Any], files: Mapping[str, Path]) -> Iterator[Mapping[str, Any]]:
        """Do a run (see `node`) with these files of the parent's, and yield the node's messages.

        Raises LostError.
        """
        ...

    def judge(self, go: bool) -> None:
        """Answer an `epoch` of a run that is judged; raises LostError."""
        ...

    def close(self, kill: bool) -> None:
        """Give the place back, by force if something goes on there."""
        ...


class Cluster(Protocol):
    """Opens places."""

    @property
    def settle_s(self) -> float:
        """How long a sweep waits for its first places, so that no run is timed beside others' imports."""
        ...

    @property
    def wait_s(self) -> float:
        """How long runs wait for a node when there is none any more."""
        ...

    def check(self, runs: Sequence[PreparedRun]) -> None:
        """Raise ConfigError for runs that can't go on here, and where a package is missing."""
        ...

    def connect(self, need: Need, results_dir: Path) -> None:
        """Be ready to open such places; called before each portion of a sweep. Raises ConfigError."""
        ...

    def sites(self) -> Sequence[str]:
        """Where places can be opened by now, one each; nodes come and go."""
        ...

    def open(self, site: str, give_up: Callable[[], bool]) -> RemoteSlot | None:
        """Open the place of a site and wait until it is there; None when `give_up` says so first.

        Raises LostError, RefusedError.
        """
        ...

    def close(self, kill: bool) -> None:
        """Leave the cluster; what is still open is ended."""
        ...
