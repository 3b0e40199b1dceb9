"""From configurations to jobs that can start: data made, shapes checked, versions known, runs identified.

Everything that can be wrong with a request is found here or before, for all runs of a sweep at once.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.core.config.run_config import FrameworkConfig, RunConfig, fit, identity, model_config
from harness.core.data import dataset as data
from harness.core.data.dataset import DataConfig, Dataset
from harness.core.runs import warm_start as start
from harness.core.runs.run_folder import Job, RunFolder
from harness.core.runs.warm_start import Source, Start
from harness.core.storage import atomic, locks
from harness.core.storage.digest import digest
from harness.core.validation import ConfigError, Mistake, parse, to_plain
from harness.shell.environment import devices
from harness.shell.environment.git_revisions import revisions
from harness.shell.environment.versions import versions
from harness.shell.runs.find_run import find_run
from harness.shell.runs.interning import Shared
from harness.shell.tracking.store import resolve_uri
from harness.shell.workers.process import WorkerKey


@dataclass(frozen=True)
class Prepared:
    """A run that can start. Runs of equal `program` can share a compiled one, in equal workers."""

    config: RunConfig
    job: Job
    folder: RunFolder
    worker: WorkerKey
    start: Start
    program: int

    @property
    def results_dir(self) -> Path:
        """The results folder, absolute."""
        return self.folder.path.parents[1]


class DataShelf:
    """Data sets by their configuration, kept in `<results_dir>/data` so that they are made only once; and the
    runs that others start from, read only once."""

    def __init__(self) -> None:
        self.shared = Shared()
        self._loaded: dict[tuple[Path, str], Dataset] = {}
        self._sources: dict[Path, tuple[int, Source]] = {}
        self._named: dict[tuple[Path, str], RunFolder] = {}

    def source(self, name: str, results_dir: Path) -> Source:
        """The finished run that a name means, see `find_run`; raises ConfigError."""
        # `last` is one and the same run as long as the command lasts
        folder = self._named.get((results_dir, name)) or find_run(results_dir, name, start.KEY)
        self._named[results_dir, name] = folder
        ended = folder.path / "result.json"
        written = ended.stat().st_mtime_ns if ended.exists() else 0
        known = self._sources.get(folder.path)
        if known is None or known[0] != written:
            known = self._sources[folder.path] = written, start.read(folder)
        return known[1]

    def get(self, config: DataConfig, results_dir: Path) -> tuple[Dataset, str]:
        """The data set and its file, relative to `results_dir`; raises ConfigError."""
        # a file that an older version made is another file
        name = f"data/{config.name}-{digest([data.FORMAT, to_plain(config)], 12)}.npz"
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
                with locks.held(folder / ".data.lock"):  # so what is half-written is what a kill left
                    atomic.remove_half_written(path)
                    if not path.exists():
                        data.save(dataset, path)


def prepare(configs: Iterable[RunConfig], shelf: DataShelf) -> list[Prepared]:
    """Check every run against its data and framework; raises ConfigError with all mistakes of all runs."""
    mistakes: list[Mistake] = []
    prepared: list[Prepared] = []
    for config in configs:
        try:
            prepared.append(_prepare(config, shelf))
        except ConfigError as error:
            mistakes.extend(error.mistakes)
    if mistakes:
        raise ConfigError(mistakes)
    for results_dir in {run.results_dir for run in prepared}:
        try:
            results_dir.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=results_dir).close()
            shelf.write(results_dir)
        except OSError as error:
            problem = f"{str(results_dir)!r} can't be written to: {error.strerror}"
            raise ConfigError([Mistake("results_dir", problem, "a folder of yours")]) from error
    return prepared


def check_parts(raw: Mapping[str, Any], shelf: DataShelf) -> list[Mistake]:
    """What shows only with data and framework at hand, for a configuration that can't be read as a whole."""
    mistakes: list[Mistake] = []
    section, train = raw.get("model"), raw.get("train")
    loss = train.get("loss", "auto") if isinstance(train, Mapping) else "auto"
    try:
        versions(parse(FrameworkConfig, raw.get("framework"), "framework"))
    except ConfigError as error:
        mistakes.extend(error.mistakes)
    try:
        config = parse(DataConfig, raw.get("data"), "data")
        if isinstance(section, Mapping):
            fit(model_config(section), loss, data.sample(config))
        shelf.get(config, Path("results"))
    except ConfigError as error:
        mistakes.extend(error.mistakes)
    return mistakes


def _prepare(config: RunConfig, shelf: DataShelf) -> Prepared:
    results_dir = Path(config.results_dir).resolve()
    mistakes: list[Mistake] = []
    found: dict[str, str] = {}
    try:
        found = versions(config.framework)
    except ConfigError as error:
        mistakes.extend(error.mistakes)
    try:
        config = devices.resolved(config)
    except ConfigError as error:
        mistakes.extend(error.mistakes)
    try:
        resolve_uri(results_dir, config.tracking.uri)
    except ConfigError as error:
        mistakes.extend(error.mistakes)
    source = None
    try:
        if config.init.from_run is not None:
            source = shelf.source(config.init.from_run, results_dir)
            config = replace(config, init=replace(config.init, from_run=source.run_id))
    except ConfigError as error:
        mistakes.extend(error.mistakes)
    try:
        dataset, file = shelf.get(config.data, results_dir)
        plan = config.plan(dataset)
        if not mistakes:
            begin = start.check(config, plan, source)
    except ConfigError as error:
        mistakes.extend(error.mistakes)
    if mistakes:
        raise ConfigError(mistakes)
    digest = source.digest if source else None
    run_id = identity(config, found, dataset.fingerprint(), digest)
    plain, of = shelf.shared.parts(config.to_plain()), shelf.shared.of
    job = Job(run_id, config.study, plain, file, of(found), source=digest, revisions=of(revisions()))
    folder = RunFolder(results_dir / "runs" / run_id)
    return Prepared(config, job, folder, of(WorkerKey.of(config)), of(begin), hash(plan))
