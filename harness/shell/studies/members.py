"""Read the runs of a study from the results folder, without MLflow.

A run is done once, however many studies include it, so it may belong to several.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from harness.core.config.run_config import RunConfig
from harness.core.runs.run_folder import RunFolder, runs
from harness.core.validation import ConfigError, Mistake, nearest
from harness.shell.runs.records import Outcome


def members(results_dir: Path) -> dict[str, list[RunFolder]]:
    """Group the run folders, ended or not, by study."""
    folders: dict[str, list[RunFolder]] = {}
    for folder in runs(results_dir):
        for study in folder.studies():
            folders.setdefault(study, []).append(folder)
    return folders


def load_outcomes(results_dir: Path, study: str | None) -> list[Outcome]:
    """Load the ended runs of a study, or of all studies; raises ConfigError if there are none."""
    ended = [(folder, result) for folder in runs(results_dir) if (result := folder.result()) is not None]
    if not ended:
        problem = f"{str(results_dir)!r} contains no finished or failed run"
        raise ConfigError([Mistake("results_dir", problem, "a folder that runs were written to")])
    selected = [pair for pair in ended if study is None or study in pair[0].studies()]
    if not selected:
        raise unknown(str(study), (name for folder, _ in ended for name in folder.studies()))
    return [Outcome(_config(folder), result, skipped=True) for folder, result in selected]


def unknown(study: str, names: Iterable[str]) -> ConfigError:
    """Build the error for a study that does not exist, with the names of those that do."""
    studies = sorted(set(names))
    return ConfigError(
        [Mistake("study", f"{study!r} has no runs", ", ".join(studies), nearest(study, studies))]
    )


def _config(folder: RunFolder) -> RunConfig:
    job = folder.job()
    assert job is not None
    return RunConfig.parse(job["config"])
