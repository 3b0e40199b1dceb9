"""Read back the runs of a study from the results folder, without MLflow."""

from __future__ import annotations

from pathlib import Path

from harness.config import RunConfig
from harness.job import runs
from harness.parse import ConfigError, Mistake, nearest
from harness.shell.session import Outcome


def load_outcomes(results_dir: Path, study: str | None) -> list[Outcome]:
    """The ended runs of a study, or of all; raises ConfigError where there are none."""
    found: list[Outcome] = []
    for folder in runs(results_dir):
        job, result = folder.job(), folder.result()
        if job is not None and result is not None:
            found.append(Outcome(RunConfig.parse(job["config"]), result, skipped=True))
    if not found:
        problem = f"no run has ended in {str(results_dir)!r}"
        raise ConfigError([Mistake("results_dir", problem, "a folder that runs were written to")])
    chosen = [outcome for outcome in found if study in (None, outcome.config.study)]
    if not chosen:
        known = sorted({outcome.config.study for outcome in found})
        problem = f"{study!r} has no runs"
        raise ConfigError([Mistake("study", problem, ", ".join(known), nearest(str(study), known))])
    return chosen
