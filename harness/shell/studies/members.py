"""Read back the runs of a study from the results folder, without MLflow.

A run is done once, whatever the studies are called that ask for it, so it may belong to several.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from harness.core.config.run_config import RunConfig
from harness.core.runs.run_folder import RunFolder, runs
from harness.core.validation import ConfigError, Mistake, nearest
from harness.shell.runs.records import Outcome


def members(results_dir: Path) -> dict[str, list[RunFolder]]:
    """The run folders of every study, ended or not, by the study's name."""
    found: dict[str, list[RunFolder]] = {}
    for folder in runs(results_dir):
        for study in folder.studies():
            found.setdefault(study, []).append(folder)
    return found


def load_outcomes(results_dir: Path, study: str | None) -> list[Outcome]:
    """The ended runs of a study, or of all; raises ConfigError where there are none."""
    ended = [(folder, result) for folder in runs(results_dir) if (result := folder.result()) is not None]
    if not ended:
        problem = f"no run has ended in {str(results_dir)!r}"
        raise ConfigError([Mistake("results_dir", problem, "a folder that runs were written to")])
    chosen = [pair for pair in ended if study is None or study in pair[0].studies()]
    if not chosen:
        raise unknown(str(study), (name for folder, _ in ended for name in folder.studies()))
    return [Outcome(_config(folder), result, skipped=True) for folder, result in chosen]


def unknown(study: str, names: Iterable[str]) -> ConfigError:
    """That there is no such study, with those that there are."""
    known = sorted(set(names))
    return ConfigError(
        [Mistake("study", f"{study!r} has no runs", ", ".join(known) or "none yet", nearest(study, known))]
    )


def _config(folder: RunFolder) -> RunConfig:
    job = folder.job()
    assert job is not None
    return RunConfig.parse(job["config"])
