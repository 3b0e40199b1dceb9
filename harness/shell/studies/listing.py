"""`evenbench study ls` and `show`: list the studies, and the runs of one study.

Everything is read from the run folders, so that it works without MLflow, during a sweep, and for runs of
other versions whose configuration this version can't read.
"""

from __future__ import annotations

import json
import textwrap
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from harness.core.runs.run_folder import RunFolder, runs
from harness.shell.reports.axes import REPETITIONS, split
from harness.shell.reports.leaderboard import SCORES
from harness.shell.reports.tables import plain_table, screen
from harness.shell.studies.members import members, unknown
from harness.shell.tracking.run_links import is_live

RUNNING, UNFINISHED = "running", "unfinished"


@dataclass(frozen=True)
class Study:
    """A row of `ls`. `runs` counts by status: that of the result, `running` while a process works on the run,
    else `unfinished`. Times are unix times in s; `size_mb` is the size of the run folders."""

    name: str
    runs: dict[str, int]
    models: list[str]
    frameworks: list[str]
    first_s: float
    last_s: float
    size_mb: float


@dataclass(frozen=True)
class Run:
    """A row of `show`: `score` is the value of `metric`; `reason` is why the run did not finish."""

    run_id: str
    axes: dict[str, str]
    status: str
    metric: str
    score: float | None
    train_s: float | None
    reason: str


def studies(results_dir: Path) -> list[Study]:
    """List all studies by when they were last active, the latest last."""
    rows = [_study(name, folders) for name, folders in members(results_dir).items()]
    return sorted(rows, key=lambda study: study.last_s)


def print_studies(results_dir: Path, as_json: bool) -> None:
    """Print the table of `ls`."""
    rows = studies(results_dir)
    if as_json:
        print(json.dumps([asdict(study) for study in rows], indent=1))
        return
    if not rows:
        print(f"no studies in {str(results_dir)!r}")
        return
    table = _table("study", "runs", "models", "frameworks", "first", "last", "MB")
    table.columns[-1].justify = "right"
    for study in rows:
        counts = ", ".join(f"{count} {status}" for status, count in study.runs.items())
        networks = ", ".join(study.models), ", ".join(study.frameworks)
        dates = _date(study.first_s), _date(study.last_s)
        table.add_row(study.name, counts, *networks, *dates, f"{study.size_mb:,.1f}")
    screen().print(table)


def print_study(results_dir: Path, name: str, as_json: bool) -> None:
    """Print the table of `show`; raises ConfigError if there is no study of that name."""
    all_members = members(results_dir)
    if name not in all_members:
        raise unknown(name, all_members)
    folders = sorted(all_members[name], key=lambda folder: _active_s(folder)[0])
    configs = [_config(folder) for folder in folders]
    shared, axes = split(configs)
    repeated = [key for key in REPETITIONS if len({config[key] for config in configs}) > 1]
    shared |= {key: str(configs[0][key]) for key in REPETITIONS if key not in repeated}
    rows = [
        _run(folder, own | {key: str(config[key]) for key in repeated})
        for folder, config, own in zip(folders, configs, axes, strict=True)
    ]
    if as_json:
        print(json.dumps({"study": name, "shared": shared, "runs": [asdict(row) for row in rows]}, indent=1))
        return
    console = screen()
    settings = " ".join(f"{key}={value}" for key, value in shared.items())
    text = textwrap.fill(f"{name}: {settings}", console.width, break_long_words=False, break_on_hyphens=False)
    console.print(text, markup=False, soft_wrap=True)
    console.print(_runs_table(rows))
    for row in (row for row in rows if row.reason):
        console.print(f"{row.run_id} {row.status}: {row.reason}", markup=False, soft_wrap=True)


def state_of(folder: RunFolder) -> str:
    """Return the status of the result, or `running` or `unfinished` without one."""
    return folder.status() or (RUNNING if is_live(folder.path) else UNFINISHED)


def size_mb(folders: Iterable[RunFolder]) -> float:
    """Return the size of the files in run folders, in MB (10^6 bytes)."""
    files = (path for folder in folders for path in folder.path.rglob("*"))
    return sum(path.lstat().st_size for path in files if path.is_file()) / 1e6


def dependants(results_dir: Path, removed: Iterable[RunFolder]) -> list[tuple[str, str]]:
    """List the other runs that started from these, as (run, the run that it started from)."""
    sources = {folder.run_id for folder in removed}
    pairs = []
    for folder in runs(results_dir):
        source = (_config(folder).get("init") or {}).get("from_run")
        if source in sources and folder.run_id not in sources:
            pairs.append((folder.run_id, str(source)))
    return pairs


def _study(name: str, folders: Sequence[RunFolder]) -> Study:
    configs = [_config(folder) for folder in folders]
    begun_s, last_s = zip(*map(_active_s, folders), strict=True)
    return Study(
        name,
        dict(Counter(state_of(folder) for folder in folders).most_common()),
        _names(configs, "model"),
        _names(configs, "framework"),
        min(begun_s),
        max(last_s),
        size_mb(folders),
    )


def _run(folder: RunFolder, axes: dict[str, str]) -> Run:
    result = folder.result() or {}
    metrics: Mapping[str, float] = result.get("metrics") or {}
    metric = next((name for name in SCORES if name in metrics), "")
    error = result.get("error") or {}
    return Run(
        folder.run_id,
        axes,
        state_of(folder),
        metric,
        metrics.get(metric),
        metrics.get("time/train_s"),
        f"{error.get('type')}: {error.get('message')}" if error else "",
    )


def _runs_table(rows: Sequence[Run]) -> Table:
    names = list(rows[0].axes)
    table = _table("run", *(name.rpartition(".")[2] for name in names), "status", "test score", "train s")
    for column in table.columns[-2:]:
        column.justify = "right"
    for row in rows:
        kind = row.metric.rpartition("/")[2]
        score = "-" if row.score is None else f"{kind} {row.score:.3f}"
        train_s = "-" if row.train_s is None else f"{row.train_s:.2f}"
        table.add_row(row.run_id, *(row.axes[name] for name in names), row.status, score, train_s)
    return table


def _config(folder: RunFolder) -> dict[str, Any]:
    config: dict[str, Any] = (folder.job() or {})["config"]
    return config


def _names(configs: Sequence[Mapping[str, Any]], section: str) -> list[str]:
    return list(dict.fromkeys(str(config[section]["name"]) for config in configs))


def _active_s(folder: RunFolder) -> tuple[float, float]:
    """Return when the run began and when its last event was, as unix times in s."""
    times_s = [event["time_ms"] / 1e3 for event in folder.events()]
    times_s = times_s or [(folder.path / "job.json").stat().st_mtime]
    return times_s[0], times_s[-1]


def _date(unix_s: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(unix_s))


def _table(*columns: str) -> Table:
    table = plain_table()
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
