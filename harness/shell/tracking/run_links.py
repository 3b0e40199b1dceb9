"""`mlflow.json` in a run's folder: which MLflow run it was copied to, and whether all of it has arrived.

The rules that keep MLflow free of doubles after a kill at any instant:

- A link names its attempt by the time of the attempt's first event. One of another attempt counts as missing:
  the engine removes it when a run begins, but may be killed before it gets there.
- It is written as soon as the MLflow run exists, and marked closed, with a digest of what was copied, last.
- So a missing link means "begin anew, and replace what MLflow has of this run", an open one "go on", and a
  closed one whose digest still fits "nothing to do".
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

LINK = "mlflow.json"
LOCK = "lock"


@dataclass(frozen=True)
class RunLink:
    """What is in `mlflow.json`. `attempt`: see `attempt()`; `epochs`: the last one that MLflow has; `digest`:
    empty while open; `studies`: those that MLflow says the run is of."""

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
        """Whether everything of the attempt is in MLflow."""
        return bool(self.digest)


def read_link(folder: Path) -> RunLink | None:
    """The folder's link; None where there is none, or one that is not ours."""
    data = read_json(folder / LINK)
    try:
        return RunLink(**data) if data else None
    except TypeError:
        return None


def write_link(folder: Path, link: RunLink) -> None:
    """Replace the folder's link in one step."""
    temporary = folder / f"{LINK}.tmp"
    temporary.write_text(json.dumps(asdict(link), indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, folder / LINK)


def forget(folder: Path) -> None:
    """Remove the link: a new attempt starts, which MLflow knows nothing of."""
    (folder / LINK).unlink(missing_ok=True)


def attempt(folder: Path) -> int:
    """When the attempt began, by its first event: unix time in ms; 0 while there is none."""
    events = read_events(folder)
    return int(events[0].get("time_ms", 0)) if events else 0


def digest(folder: Path) -> str:
    """What tells one attempt from another: the result with its raw timings, or the events if it has none."""
    for name in ("result.json", "events.jsonl"):
        path = folder / name
        if path.exists():
            return f"{name}:{hashlib.sha256(path.read_bytes()).hexdigest()}"
    return "nothing"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty where the file is missing or was cut off by a crash."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def read_events(folder: Path) -> list[dict[str, Any]]:
    """All whole lines of `events.jsonl`; a kill may have cut the last one."""
    try:
        lines = (folder / "events.jsonl").read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    events = []
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict):
            events.append(event)
    return events
