"""Inputs of runs, read once: data sets, and the runs that others start from."""

from __future__ import annotations

from pathlib import Path

from harness.core.data import dataset as data
from harness.core.data.dataset import DataConfig, Dataset
from harness.core.runs import warm_start as start
from harness.core.runs.run_folder import RunFolder
from harness.core.runs.warm_start import SourceRun
from harness.core.storage import atomic, locks
from harness.core.storage.digest import digest
from harness.core.validation import to_plain
from harness.shell.runs.find_run import find_run
from harness.shell.runs.interning import Interner


class DatasetCache:
    """Data sets by their configuration, kept in `<results_dir>/data` so that they are made only once; and the
    runs that others start from, read only once."""

    def __init__(self) -> None:
        self.shared = Interner()
        self._loaded: dict[tuple[Path, str], Dataset] = {}
        self._sources: dict[Path, tuple[int, SourceRun]] = {}
        self._named: dict[tuple[Path, str], RunFolder] = {}

    def source(self, name: str, results_dir: Path) -> SourceRun:
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
