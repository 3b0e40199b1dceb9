"""Hydra's view of a local sweep: Hydra composes the runs, this hands all of them to the session at once.

Hydra finds launchers in the namespace package `hydra_plugins`; the command line puts the folder above this
one on the path before Hydra starts, which works from a checkout and from a wheel alike.
"""

from __future__ import annotations

from collections.abc import Sequence

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from harness.shell.task import execute


class EvenbenchLauncher(Launcher):
    """Runs the jobs of a sweep in the current session's workers."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Remember what Hydra composes with."""
        self._loader = hydra_context.config_loader
        self._config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Do the runs; a failed run is a recorded result and not an exception, so that the sweep goes on."""
        composed = (self._loader.load_sweep_config(self._config, list(job)) for job in job_overrides)
        return [_returned(job, result) for job, result in zip(job_overrides, execute(composed), strict=True)]


def _returned(overrides: Sequence[str], metrics: dict[str, float]) -> JobReturn:
    returned = JobReturn(overrides=list(overrides), status=JobStatus.COMPLETED)
    returned.return_value = metrics
    return returned
