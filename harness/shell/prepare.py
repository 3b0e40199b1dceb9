"""From configurations to jobs that can start: data made, shapes checked, versions known, runs identified.

Everything that can be wrong with a request is found here or before, for all runs of a sweep at once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from harness import data
from harness.config import RunConfig, identity
from harness.data import DataConfig, Dataset
from harness.job import Job, RunFolder
from harness.parse import ConfigError, Mistake, to_plain
from harness.shell.process import WorkerKey
from harness.shell.versions import versions


@dataclass(frozen=True)
class Prepared:
    """A run that can start."""

    config: RunConfig
    job: Job
    folder: RunFolder
    worker: WorkerKey


class DataShelf:
    """Data sets by their configuration, kept in `<results_dir>/data` so that they are made only once."""

    def __init__(self) -> None:
        self._loaded: dict[tuple[Path, str], Dataset] = {}

    def get(self, config: DataConfig, results_dir: Path) -> tuple[Dataset, str]:
        """The data set and its file, relative to `results_dir`; raises ConfigError."""
        text = json.dumps(to_plain(config), sort_keys=True)
        name = f"data/{config.name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.npz"
        key = results_dir, name
        if key not in self._loaded:
            path = results_dir / name
            self._loaded[key] = data.open_dataset(path) if path.exists() else data.load(config)
        return self._loaded[key], name

    def write(self, results_dir: Path) -> None:
        """Put what was loaded where workers find it."""
        for (folder, name), dataset in self._loaded.items():
            path = folder / name
            if folder == results_dir and not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                data.save(dataset, path)


def prepare(configs: Iterable[RunConfig], shelf: DataShelf) -> list[Prepared]:
    """Check every run against its data and framework; raises ConfigError with all mistakes of all runs."""
    mistakes: list[Mistake] = []
    runs: list[Prepared] = []
    for config in configs:
        try:
            runs.append(_prepare(config, shelf))
        except ConfigError as error:
            mistakes.extend(error.mistakes)
    if mistakes:
        raise ConfigError(mistakes)
    for results_dir in {Path(run.config.results_dir) for run in runs}:
        shelf.write(results_dir.resolve())
    return runs


def _prepare(config: RunConfig, shelf: DataShelf) -> Prepared:
    results_dir = Path(config.results_dir).resolve()
    mistakes: list[Mistake] = []
    found: dict[str, str] = {}
    try:
        found = versions(config.framework)
    except ConfigError as error:
        mistakes.extend(error.mistakes)
    try:
        dataset, file = shelf.get(config.data, results_dir)
        config.plan(dataset)
    except ConfigError as error:
        mistakes.extend(error.mistakes)
    if mistakes:
        raise ConfigError(mistakes)
    run_id = identity(config, found, dataset.fingerprint())
    job = Job(run_id, config.study, config.to_plain(), file, found)
    return Prepared(config, job, RunFolder(results_dir / "runs" / run_id), WorkerKey.of(config))
