"""The machine and its disk, and problems with them that would distort results."""

from __future__ import annotations

import os
import platform
import shutil
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

from harness.core.machine import host as machine
from harness.core.machine import timing
from harness.core.runs import run_folder
from harness.core.validation import ConfigError
from harness.shell.doctor.findings import Host, Problem, Storage
from harness.shell.environment.cards import cards
from harness.shell.tracking.uri import resolve_uri, sqlite_path

MIN_MEMORY_MB = 2000.0  # a worker with TensorFlow needs about 700
MIN_DISK_GB = 1.0
STEADY = "performance"  # the frequency governor with reproducible times


def host() -> tuple[Host, list[Problem]]:
    """Examine the machine."""
    host = Host(
        cpu=machine.cpu_model(),
        architecture=platform.machine(),
        cores=os.cpu_count() or 1,
        affinity=len(machine.allowed_cores()),
        quota=machine.quota(),
        memory_mb=machine.memory_mb(),
        load=timing.load_average(),
        governors=machine.governors(),
        energy_counters=machine.energy_counters(),
        cards=cards(),
    )
    return host, _host_problems(host)


def _host_problems(host: Host) -> list[Problem]:
    problems = []
    if host.quota is not None and host.quota < host.affinity:
        what = f"a control group limits this process to {host.quota:g} of {host.affinity} cores"
        problems.append(Problem(what, f"at most threads={machine.usable_cores()}, or a higher quota"))
    if host.load > host.affinity:
        what = f"{host.load:.1f} processes competed for {host.affinity} cores in the last minute"
        problems.append(Problem(what, "stop other programs while runs are timed"))
    unsteady = [name for name in host.governors if name != STEADY]
    if unsteady:
        what = f"the frequency of the cores varies (governor {', '.join(unsteady)})"
        problems.append(Problem(what, f"sudo cpupower frequency-set -g {STEADY}"))
    if host.memory_mb is not None and host.memory_mb[1] < MIN_MEMORY_MB:
        what = f"{host.memory_mb[1]:,.0f} MB of memory are available"
        problems.append(Problem(what, "stop other programs, or run one framework at a time"))
    unreadable = [name for name, readable in host.energy_counters.items() if not readable]
    if unreadable:
        what = f"energy counters exist, but you may not read them: {', '.join(unreadable)}"
        advice = "sudo chmod a+r /sys/class/powercap/*/energy_uj (until the next reboot), or leave energy n/a"
        problems.append(Problem(what, advice))
    return problems


def storage(results_dir: Path) -> tuple[Storage, list[Problem]]:
    """Examine the results folder, which is created if missing, and the store in it."""
    problems: list[Problem] = []
    writable = True
    try:
        results_dir.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=results_dir).close()
    except OSError as error:
        writable = False
        what = f"{str(results_dir)!r} can't be written to: {error.strerror}"
        problems.append(
            Problem(what, "another folder: results_dir=, or --results-dir of this command", broken=True)
        )
    existing = next(path for path in (results_dir, *results_dir.parents) if path.is_dir())
    free_gb = shutil.disk_usage(existing).free / 1e9
    if free_gb < MIN_DISK_GB:
        problems.append(Problem(f"{free_gb:.1f} GB of disk are free", "delete old runs, or use another disk"))
    store, tracked = "", None
    try:
        store = resolve_uri(results_dir, None)
        tracked = _tracked(sqlite_path(store))
    except ConfigError as error:
        problems += [Problem(f"{m.key}: {m.problem}", m.allowed, broken=True) for m in error.mistakes]
    except sqlite3.Error as error:
        what = f"the MLflow store {store} can't be read: {error}"
        advice = "move it away; `evenbench sync` recreates it from the run folders"
        problems.append(Problem(what, advice, broken=True))
    runs = len(run_folder.runs(results_dir)) if existing == results_dir else 0
    return Storage(str(results_dir), writable, free_gb, runs, store, tracked), problems


def _tracked(database: Path | None) -> int | None:
    """Count the runs in a database, without MLflow; None without a database. Raises sqlite3.Error."""
    if database is None or not database.exists():
        return None
    with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True, timeout=5)) as connection:
        (count,) = connection.execute("select count(*) from runs where lifecycle_stage = 'active'").fetchone()
    return int(count)
