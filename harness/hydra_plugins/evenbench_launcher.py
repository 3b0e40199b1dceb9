"""Launchers for Hydra: they compose the runs of a sweep and pass all of them to the session at once.

Hydra finds launchers in the namespace package `hydra_plugins`. The command line puts the folder that contains
it on the path before Hydra starts, which works both in a checkout and in an installed package.
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
    """Executes the runs of a sweep in workers on this machine; launchers for clusters set `engine`.

    A sweeper may set `should_continue`, which is called after each epoch of each run.
    """

    engine: Engine | None = None
    should_continue: JobShouldContinue | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what is needed to compose runs."""
        self._composer = TemplateComposer(hydra_context.config_loader, config)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Execute the runs; each job's `return_value` is an Outcome.

        A failed run is a recorded result rather than an exception, so that the sweep continues.
        """
        configs = (self._composer.compose(overrides) for overrides in job_overrides)
        outcomes = execute(configs, self.engine, self.should_continue)
        return [_job_return(job, outcome) for job, outcome in zip(job_overrides, outcomes, strict=True)]


class RayLauncher(EvenbenchLauncher):
    """Executes the runs on the nodes of a Ray cluster; see `RayOptions`."""

    def __init__(self, **options: Any) -> None:
        self._options = options

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Create the engine of the command; raises ConfigError."""
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        # imported here, because Hydra imports its plugins for every command
        from harness.shell.engines.cluster.engine import ClusterEngine
        from harness.shell.engines.cluster.options import RayOptions, read_options
        from harness.shell.engines.cluster.ray import RayCluster

        options = read_options(RayOptions, self._options)
        self.engine = ClusterEngine(RayCluster(options), options.retries)


class SlurmLauncher(EvenbenchLauncher):
    """Executes the runs in Slurm jobs; see `SlurmOptions`."""

    def __init__(self, **options: Any) -> None:
        self._options = options

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Create the engine of the command; raises ConfigError."""
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        from harness.shell.engines.cluster.engine import ClusterEngine
        from harness.shell.engines.cluster.options import SlurmOptions, read_options
        from harness.shell.engines.cluster.slurm import SlurmCluster

        options = read_options(SlurmOptions, self._options)
        self.engine = ClusterEngine(SlurmCluster(options), options.retries)


def _job_return(overrides: Sequence[str], outcome: object) -> JobReturn:
    job_return = JobReturn(overrides=list(overrides), status=JobStatus.COMPLETED)
    job_return.return_value = outcome
    return job_return
