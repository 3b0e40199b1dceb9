"""What studies leave in a results folder and in MLflow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from harness.shell.tracking.store import Store

Make = Callable[..., Path]


def active(store: Store, kind: str = "trial") -> dict[str, dict[str, str]]:
    """The tags of MLflow's active runs, by run id or by study."""
    runs = store.client.search_runs([store.experiment_id], f"tags.kind = '{kind}'")
    return {run.data.tags["run_id" if kind == "trial" else "study"]: run.data.tags for run in runs}


def files(results: Path) -> set[str]:
    """The files in the folders that runs fill."""
    return {
        str(path.relative_to(results))
        for top in ("runs", "data", "artifacts", "searches", ".removed")
        for path in (results / top).rglob("*")
        if path.is_file()
    }
