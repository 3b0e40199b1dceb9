"""What runs read before they start, loaded once per command: data sets, and the source runs of warm
starts."""

from __future__ import annotations

from pathlib import Path

from harness.core.adapter import Plan
from harness.core.data import dataset as data
from harness.core.data.dataset import DataConfig, Dataset
from harness.core.runs import warm_start
from harness.core.runs.run_folder import RunFolder
from harness.core.runs.warm_start import SourceRun
from harness.core.storage import atomic, locks
from harness.core.storage.digest import digest
from harness.core.validation import to_plain
from harness.shell.runs.find_run import find_run
from harness.shell.runs.interning import Interner


class DatasetCache:
    """Data sets by their configuration. Workers read them from files in `<results_dir>/data`."""

    def __init__(self) -> None:
        self._loaded: dict[tuple[Path, str], Dataset] = {}

    def get(self, config: DataConfig, results_dir: Path) -> tuple[Dataset, str]:
        """The data set and its file, relative to `results_dir`; raises ConfigError."""
        # the format's version is part of the name: a file written in an older format is not read
        name = f"data/{config.name}-{digest([data.FORMAT, to_plain(config)], 12)}.npz"
        key = results_dir, name
        if key not in self._loaded:
            path = results_dir / name
            self._loaded[key] = data.open_dataset(path) if path.exists() else data.load(config)
        return self._loaded[key], name

    def write(self, results_dir: Path) -> None:
        """Write the loaded data sets of a results folder to their files; existing files are kept."""
        for (folder, name), dataset in self._loaded.items():
            path = folder / name
            if folder == results_dir and not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                with locks.exclusive_lock(
                    folder / ".data.lock"
                ):  # so a half-written file is left by a kill, not in use
                    atomic.remove_half_written(path)
                    if not path.exists():
                        data.save(dataset, path)


class SourceRunCache:
    """The finished runs that others start from (`init.from_run`)."""

    def __init__(self) -> None:
        self._runs: dict[Path, tuple[int, SourceRun]] = {}
        self._folders: dict[tuple[Path, str], RunFolder] = {}

    def get(self, name: str, results_dir: Path) -> SourceRun:
        """The run that a name refers to, see `find_run`; raises ConfigError."""
        # `last` refers to the same run for the whole command
        folder = self._folders.get((results_dir, name)) or find_run(results_dir, name, warm_start.KEY)
        self._folders[results_dir, name] = folder
        result = folder.path / "result.json"
        written_ns = result.stat().st_mtime_ns if result.exists() else 0
        entry = self._runs.get(folder.path)
        if entry is None or entry[0] != written_ns:
            entry = self._runs[folder.path] = written_ns, warm_start.read(folder)
        return entry[1]


class RunInputs:
    """All that preparing the runs of a command loads, and the parts of their configurations that are
    equal."""

    def __init__(self) -> None:
        self.datasets = DatasetCache()
        self.sources = SourceRunCache()
        self.interner = Interner()
        self.plans: dict[Plan, Plan] = {}
