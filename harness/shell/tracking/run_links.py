"""`mlflow.json` in a run's folder: which MLflow run it was copied to, and whether the copy is complete.

These rules keep MLflow free of duplicates after a kill at any instant:

- A link identifies its attempt by the time of the attempt's first event. A link of another attempt counts as
  missing: the session removes it when a run begins, but may be killed before that.
- It is written as soon as the MLflow run exists. Closing it, with a digest of what was copied, comes last.
- So a missing link means "start over and replace the run in MLflow", an open one "continue", and a closed one
  whose digest still matches "nothing to do".
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

from harness.core.runs.run_folder import RunFolder
from harness.core.storage import locks
from harness.core.storage.json_files import read_json

LINK = "mlflow.json"
LOCK = "lock"


@dataclass(frozen=True)
class RunLink:
    """The contents of `mlflow.json`. `attempt`: see `attempt()`; `epochs`: the last one that MLflow has;
    `digest`: empty while the link is open; `studies`: those that MLflow lists the run under."""

    tracking_uri: str
    store: str
    experiment_id: str
    run_id: str
    attempt: int
    epochs: int = 0
    digest: str = ""
    studies: list[str] = field(default_factory=list)

    @property
    def closed(self) -> bool:
        """Whether the whole attempt is in MLflow."""
        return bool(self.digest)


def read_link(folder: Path) -> RunLink | None:
    """Read the folder's link; None if it is missing, damaged, or written by something else."""
    try:
        link = read_json(folder / LINK)
        return RunLink(**link) if link else None
    except (TypeError, ValueError):
        return None


def write_link(folder: Path, link: RunLink) -> None:
    """Replace the folder's link in one step."""
    temporary = folder / f"{LINK}.tmp"
    temporary.write_text(json.dumps(asdict(link), indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, folder / LINK)


def remove_link(folder: Path) -> None:
    """Remove the link, because a new attempt starts that MLflow does not know."""
    (folder / LINK).unlink(missing_ok=True)


def attempt(folder: Path) -> int:
    """Return when the attempt began, by its first event: unix time in ms; 0 before the first event."""
    events = RunFolder(folder).events()
    return int(events[0].get("time_ms", 0)) if events else 0


def digest(folder: Path) -> str:
    """Identify the attempt by the contents of its result with raw timings, or of its events without one."""
    for name in ("result.json", "events.jsonl"):
        path = folder / name
        if path.exists():
            return f"{name}:{hashlib.sha256(path.read_bytes()).hexdigest()}"
    return "nothing"


def is_live(folder: Path) -> bool:
    """Whether a process works on the run: it holds the folder's `lock`."""
    return locks.is_locked(folder / LOCK)
