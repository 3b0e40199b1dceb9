"""What `hydra/launcher=ray` and `hydra/launcher=slurm` can be told: the keys below `hydra.launcher`."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar

from harness.core.config.run_config import Positive, Whole
from harness.core.validation import ConfigError, Mistake, Range, parse

T = TypeVar("T")
KEY = "hydra.launcher"

Seconds = Annotated[float, Range(min=0.0)]


@dataclass(frozen=True)
class RayOptions:
    """A Ray cluster: `address` is null (one on this machine, for this command), `auto` (the one that this
    machine belongs to) or `host:port`. `retries`: how often a run is done once more after its node died.
    `wait_s`: how long runs wait for a node when none is left."""

    address: str | None = None
    retries: Whole = 1
    wait_s: Seconds = 60.0


@dataclass(frozen=True)
class SlurmOptions:
    """Slurm jobs: at most `jobs` at a time, each of which serves runs until there are no more. `folder` must
    be one that the nodes see under the same name; null is `slurm` in the results folder. `cluster=local`
    starts the jobs as processes here. `parameters` are more options of sbatch, `setup` lines of its script.
    A job that says nothing for `silence_s` is lost."""

    cluster: Literal["slurm", "local"] = "slurm"
    folder: str | None = None
    jobs: Positive = 4
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    time_minutes: Positive = 60
    memory_gb: Annotated[float, Range(min=0.0, exclusive_min=True)] | None = None
    exclusive: bool = False
    setup: tuple[str, ...] = ()
    parameters: dict[str, Any] = field(default_factory=dict)
    retries: Whole = 1
    silence_s: Annotated[float, Range(min=5.0)] = 60.0


def read(kind: type[T], given: Mapping[str, Any]) -> T:
    """The options that Hydra composed; raises ConfigError."""
    return parse(kind, dict(given), KEY)


def require(package: str, extra: str) -> None:
    """Raise ConfigError where an extra is not installed."""
    if importlib.util.find_spec(package) is None:
        problem = f"{extra!r} needs the package {package}, which is not installed here"
        raise ConfigError([Mistake("hydra/launcher", problem, f"pip install 'evenbench[{extra}]'")])
