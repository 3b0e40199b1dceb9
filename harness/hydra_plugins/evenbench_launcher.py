"""Hydra's view of a sweep: Hydra composes the runs, this hands all of them to the session at once.

Hydra finds launchers in the namespace package `hydra_plugins`; the command line puts the folder above this
one on the path before Hydra starts, which works from a checkout and from a wheel alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from harness.shell.compose.fast_compose import TemplateComposer
from harness.shell.compose.hydra import execute
from harness.shell.engines.protocol import Engine, JobShouldContinue


class EvenbenchLauncher(Launcher):
    """Runs the jobs of a sweep in the session's own workers; those of a cluster override `engine`.

    A sweeper may set `judge`, which is asked after each epoch whether a run is to go on.
    """

    engine: Engine | None = None
    judge: JobShouldContinue | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Remember what Hydra composes with."""
        self._frames = TemplateComposer(hydra_context.config_loader, config)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Do the runs; each job's `return_value` is an Outcome.

        A failed run is a recorded result and not an exception, so that the sweep goes on.
        """
        composed = (self._frames.compose(job) for job in job_overrides)
        outcomes = execute(composed, self.engine, self.judge)
        return [_returned(job, outcome) for job, outcome in zip(job_overrides, outcomes, strict=True)]


class RayLauncher(EvenbenchLauncher):
    """Runs them on the nodes of a Ray cluster; its options are read, and refused, all at once."""

    def __init__(self, **options: Any) -> None:
        self._options = options

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Make the engine of the command; raises ConfigError."""
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        # Hydra imports its plugins for every command, which shall not pay for this
        from harness.shell.engines.cluster import options, ray
        from harness.shell.engines.cluster.engine import ClusterEngine

        asked = options.read(options.RayOptions, self._options)
        self.engine = ClusterEngine(ray.RayCluster(asked), asked.retries)


class SlurmLauncher(EvenbenchLauncher):
    """Runs them in Slurm jobs; its options are read, and refused, all at once."""

    def __init__(self, **options: Any) -> None:
        self._options = options

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Make the engine of the command; raises ConfigError."""
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        from harness.shell.engines.cluster import options, slurm
        from harness.shell.engines.cluster.engine import ClusterEngine

        asked = options.read(options.SlurmOptions, self._options)
        self.engine = ClusterEngine(slurm.SlurmCluster(asked), asked.retries)


def _returned(overrides: Sequence[str], outcome: object) -> JobReturn:
    returned = JobReturn(overrides=list(overrides), status=JobStatus.COMPLETED)
    returned.return_value = outcome
    return returned
