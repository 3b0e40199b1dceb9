"""Run the command `evenbench` with some functions of the shell timed, for the time breakdown of a sweep.

    python -m tests.bench.traced SPANS.json [arguments of evenbench ...]

Calls of the functions below are recorded as [name, thread, start, end] in Unix time. Times inside workers are
in the runs' files.
"""

from __future__ import annotations

import functools
import gc
import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Span = tuple[str, str, float, float]


def main(spans_file: Path, arguments: list[str]) -> int:
    spans: list[Span] = []
    start = time.time()
    from harness.shell.commands import main as cli
    from harness.shell.reports import leaderboard
    from harness.shell.session import session
    from harness.shell.tracking.background import TrackingThread
    from harness.shell.tracking.tracker import Tracker
    from harness.shell.workers.process import Worker

    spans.append(("import of the shell", "MainThread", start, time.time()))
    functions: list[tuple[Any, str, str]] = [
        (session.Session, "_prepare", "prepare"),
        (session.Session, "execute", "execute"),
        (session.Session, "__exit__", "exit of the session"),
        (leaderboard, "print_leaderboard", "leaderboard"),
        (Worker, "wait_ready", "wait for workers"),
        (Worker, "close", "end of workers"),
        (TrackingThread, "wait_open", "wait for MLflow"),
        (TrackingThread, "close", "last logging"),
        (Tracker, "begin", "MLflow begin"),
        (Tracker, "whole", "MLflow whole"),
        (Tracker, "epochs", "MLflow epochs"),
        (Tracker, "finish", "MLflow finish"),
    ]
    for owner, name, label in functions:
        setattr(owner, name, _timed(getattr(owner, name), label, spans))
    try:
        return cli.main(arguments)
    finally:
        spans.append(("main", "MainThread", start, time.time()))
        spans_file.write_text(json.dumps(spans))
        gc.freeze()  # as the command does


def _timed(function: Callable[..., Any], label: str, spans: list[Span]) -> Callable[..., Any]:
    @functools.wraps(function)
    def timed(*arguments: Any, **named: Any) -> Any:
        start = time.time()
        try:
            return function(*arguments, **named)
        finally:
            spans.append((label, threading.current_thread().name, start, time.time()))

    return timed


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
