"""The options of `hydra/launcher=ray` and `hydra/launcher=slurm`: the keys below `hydra.launcher`."""

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
    """A Ray cluster.

    `address` is null (start one on this machine for this command), `auto` (the one that this machine belongs
    to) or `host:port`. `retries` is how often a run is repeated after its node died, `wait_s` how long runs
    wait for a node when none is left.
    """

    address: str | None = None
    retries: Whole = 1
    wait_s: Seconds = 60.0


@dataclass(frozen=True)
class SlurmOptions:
    """Slurm jobs: at most `jobs` at a time, each of which executes runs until none are left.

    `folder` must have the same path on all nodes; null means `slurm` in the results folder. `cluster=local`
    starts the jobs as processes on this machine. `parameters` are additional options of sbatch, `setup` lines
    of its script. A job that is silent for `silence_s` counts as lost.
    """

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


def read_options(kind: type[T], plain: Mapping[str, Any]) -> T:
    """The options that Hydra composed; raises ConfigError."""
    return parse(kind, dict(plain), KEY)


def require(package: str, extra: str) -> None:
    """Raise ConfigError if a package of an extra is not installed."""
    if importlib.util.find_spec(package) is None:
        problem = f"{extra!r} needs the package {package}, which is not installed here"
        raise ConfigError([Mistake("hydra/launcher", problem, f"pip install 'evenbench[{extra}]'")])
