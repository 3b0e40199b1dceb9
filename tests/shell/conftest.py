"""Fixtures of the tests of studies."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.core.runs.run_folder import RunFolder
from harness.core.storage.json_files import write_json
from tests.support.compose import composing, config_of
from tests.support.study_folders import Make

T0 = 1_760_000_000_000


@pytest.fixture(scope="module")
def plain() -> Iterator[dict[str, Any]]:
    """A real configuration in plain form."""
    with composing():
        yield config_of("data=iris").to_plain()


@pytest.fixture
def make(results: Path, plain: dict[str, Any]) -> Make:
    """`make("a1", "first", seed=1)`: the folder of a run; `status=None` for one that has not ended."""

    def run(
        run_id: str, study: str, status: str | None = "finished", data: str = "iris", **keys: Any
    ) -> Path:
        folder = RunFolder(results / "runs" / run_id)
        config = {**plain, "study": study, "results_dir": str(results), **keys}
        file = f"data/{data}.npz"
        (results / "data").mkdir(exist_ok=True)
        (results / file).write_bytes(b"rows")
        folder.write_job({"run_id": run_id, "study": study, "config": config, "data_file": file})
        events = [{"event": "epoch", "epoch": n, "time_ms": T0 + 1000 * n} for n in (1, 2)]
        for event in events:
            folder.append_event({**event, "metrics": {"val/loss": 1.0}})
        if status is not None:
            error = None if status == "finished" else {"type": "exit", "message": "exited with [bold]3"}
            metrics = {} if error else {"test/accuracy": 0.75, "time/train_s": 1.5, "speed/step_ms": 1.0}
            result = {
                "run_id": run_id,
                "status": status,
                "error": error,
                "metrics": metrics,
                "epochs": events,
            }
            (folder.path / "weights.npz").write_bytes(b"w" * 1000)
            write_json(folder.path / "result.json", result)
        return folder.path

    return run
