"""Run folders as a worker leaves them, and what an MLflow store has of them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from harness.shell.tracking.store import Store
from tests.support.paths import ROOT

T0 = 1_760_000_000_000  # a unix time in ms, long past, so that no clock returns it by accident


METRICS = {"train/loss", "val/loss", "val/accuracy"}


def config(seed: int) -> dict[str, Any]:
    return {
        "model": {"name": "fnn", "layers": [{"kind": "dense", "units": 8}, {"kind": "output"}]},
        "framework": {"name": "torch", "backend": None},
        "data": {"name": "digits"},
        "optimizer": {"kind": "adam", "learning_rate": 0.001},
        "train": {"epochs": 3, "batch_size": 32},
        "seed": seed,
        "repeat": 0,
        "precision": "float32",
    }


def epochs(attempt: int = 0, count: int = 3) -> list[dict[str, Any]]:
    return [
        {
            "event": "epoch",
            "time_ms": T0 + 100_000 * attempt + 1000 * epoch,
            "epoch": epoch,
            "metrics": {"train/loss": 1.0 / epoch, "val/loss": 2.0 / epoch, "val/accuracy": 1 - 0.5 / epoch},
        }
        for epoch in range(1, count + 1)
    ]


def make_run(results: Path, run_id: str, study: str = "main", seed: int = 0) -> tuple[Path, dict[str, Any]]:
    """The folder of a run that is about to start."""
    folder = results / "runs" / run_id
    folder.mkdir(parents=True)
    job = {"run_id": run_id, "study": study, "config": config(seed)}
    (folder / "job.json").write_text(json.dumps(job))
    return folder, job


def end_run(folder: Path, attempt: int = 0, **changes: Any) -> dict[str, Any]:
    """Write what a worker leaves behind, and return the result."""
    records = epochs(attempt)
    (folder / "events.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    result = {
        "run_id": folder.name,
        "status": "finished",
        "error": None,
        "metrics": {"test/accuracy": 0.9, "test/loss": 0.3, "speed/step_ms": 1.5, "val/loss": 2.0 / 3},
        "epochs": records,
        "timing": {"disturbed": []},
        "environment": {"python": "3.11.2", "packages": {"torch": "2.13.0"}, "flags": "x" * 200},
        "certificate": None,
        **changes,
    }
    (folder / "weights.npz").write_bytes(b"weights" + bytes([attempt]))
    (folder / "worker.log").write_text("epoch 1\n")
    (folder / "result.json").write_text(json.dumps(result))
    return result


def whole_run(results: Path, run_id: str, **changes: Any) -> Path:
    folder, _ = make_run(results, run_id)
    end_run(folder, **changes)
    return folder


def trials(store: Store, query: str = "") -> list[Any]:
    filters = "tags.kind = 'trial'" + (f" and {query}" if query else "")
    return list(store.client.search_runs([store.experiment_id], filters))


def running(store: Store) -> list[Any]:
    return list(store.client.search_runs([store.experiment_id], "attributes.status = 'RUNNING'"))


def points(store: Store, run_id: str) -> list[tuple[str, int, int, float]]:
    """Every metric point of an MLflow run: key, timestamp, step, value."""
    keys = store.client.get_run(run_id).data.metrics
    history = [point for key in sorted(keys) for point in store.client.get_metric_history(run_id, key)]
    return [(point.key, point.timestamp, point.step, point.value) for point in history]


def dump(store: Store) -> list[str]:
    """Everything the database holds, as SQL."""
    import contextlib
    import sqlite3

    with contextlib.closing(sqlite3.connect(store.results_dir / "mlflow.db")) as connection:
        return sorted(connection.iterdump())


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


CHILD_IMPORTS = """
import fcntl, os, shutil, signal, sys, threading, time
from pathlib import Path
from harness.shell.tracking import run_links
from harness.shell.tracking.background import TrackingThread
from harness.shell.tracking.store import open_store
from harness.shell.tracking.sync import sync, sync_run
from harness.shell.tracking.tracker import Tracker
from tests.support.tracked_runs import *
"""


def child(code: str, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    """Another Python process that runs code with these helpers and the classes of tracking imported."""
    return subprocess.Popen(
        [sys.executable, "-c", CHILD_IMPORTS + code, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )
