"""Run a command and measure its duration and the memory of its processes."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.bench.warm_trials import environment

EVERY_S = 0.25


@dataclass(frozen=True)
class Watched:
    """Cost of a command: `started` is a Unix time in s; peaks of resident memory in MB, as sampled, of its
    first process and of all its descendants together."""

    started: float
    wall_s: float
    own_mb: float
    others_mb: float


def watch(module: Sequence[str], place: Path, more: Mapping[str, str] | None = None) -> Watched:
    """Run `python -m ...` in a folder (created if missing), with `more` in its environment; raises
    RuntimeError if it fails."""
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile("w+") as log:
        started, start = time.time(), time.perf_counter()
        command = [sys.executable, "-m", *module]
        env = environment() | dict(more or {})
        child = subprocess.Popen(command, cwd=place, env=env, stdout=log, stderr=log)
        peaks, over = [0.0, 0.0], threading.Event()
        watcher = threading.Thread(target=_sample, args=(child.pid, peaks, over))
        watcher.start()
        status = child.wait()
        wall_s = time.perf_counter() - start
        over.set()
        watcher.join()
        if status:
            log.seek(0)
            raise RuntimeError(f"{' '.join(module)} failed\n{log.read()[-4000:]}")
    return Watched(started, wall_s, *peaks)


def _sample(pid: int, peaks: list[float], over: threading.Event) -> None:
    while not over.wait(EVERY_S):
        try:
            process = psutil.Process(pid)
            others = sum(map(_resident_mb, process.children(recursive=True)))
            peaks[:] = max(peaks[0], _resident_mb(process)), max(peaks[1], others)
        except psutil.NoSuchProcess:
            return


def _resident_mb(process: psutil.Process) -> float:
    try:
        return float(process.memory_info().rss / 1e6)
    except psutil.NoSuchProcess:  # it has ended since it was listed
        return 0.0
