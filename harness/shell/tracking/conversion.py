"""Convert plain values to MLflow's params, tags, metrics and statuses, within its limits on keys and
lengths."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from harness.core.config.flatten import flatten

if TYPE_CHECKING:
    from mlflow.entities import Metric

AXES = (
    *("model", "framework", "data", "optimizer", "schedule", "execution", "precision", "device"),
    *("threads", "seed", "repeat", "isolation"),
)
STATUS = {
    "finished": "FINISHED",
    # as Optuna's and Ray Tune's loggers do: pruning is not a failure; the tag `status` tells them apart
    "pruned": "FINISHED",
    "failed": "FAILED",
    "timeout": "FAILED",
    "diverged": "FAILED",
    "killed": "KILLED",
}
"""MLflow's status for each status of a run."""

# MLflow's limits: characters of a key, of a param's value and of a tag's value; params or tags per call, and
# metrics per call (1000 including the params and tags).
KEY_LENGTH, PARAM_LENGTH, TAG_LENGTH = 250, 6000, 5000
ENTITIES_PER_CALL, METRICS_PER_CALL = 100, 900
ENVIRONMENT_TAGS = 40  # at most, of a run's environment; result.json has all of it


def run_name(axes: Mapping[str, str]) -> str:
    """Build the run's display name, for example `fnn torch digits s0`."""
    words = [axes[axis] for axis in ("model", "framework", "data") if axis in axes]
    words += [f"s{axes['seed']}"] if "seed" in axes else []
    words += [f"r{axes['repeat']}"] if axes.get("repeat", "0") != "0" else []
    return " ".join(words)


def group_name(axes: Mapping[str, str]) -> str:
    """Build the name that repetitions with other seeds share: `fnn torch digits adam epoch float32`."""
    shared = ("model", "framework", "data", "optimizer", "execution", "precision")
    return " ".join(axes[axis] for axis in shared if axis in axes)


def axis_name(section: object) -> str:
    """Return an axis' value: the name of a section of the configuration, or the value itself."""
    if isinstance(section, Mapping):
        return str(section.get("name") or section.get("kind") or "")
    return str(section)


def _key(text: str) -> str:
    return re.sub(r"[^\w/:. -]", "_", text, flags=re.ASCII)[:KEY_LENGTH]


def params_of(pairs: Iterable[tuple[str, str]]) -> list[Any]:
    """Build params from keys and texts; texts that are too long are cut."""
    from mlflow.entities import Param

    return [Param(_key(key), value[:PARAM_LENGTH]) for key, value in pairs]


def tags_of(pairs: Mapping[str, str]) -> list[Any]:
    """Build tags from keys and texts; texts that are too long are cut."""
    from mlflow.entities import RunTag

    return [RunTag(_key(key), str(value)[:TAG_LENGTH]) for key, value in pairs.items()]


def metrics_of(values: Mapping[str, Any], time_ms: int, step: int) -> list[Metric]:
    """Build metrics from the numbers among the values (a result may hold null).

    Infinity becomes NaN, because MLflow would store it as 1.8e308.
    """
    from mlflow.entities import Metric

    return [
        Metric(_key(key), float(value) if math.isfinite(value) else math.nan, time_ms, step)
        for key, value in values.items()
        if isinstance(value, int | float)
    ]


def parts(items: list[Any], size: int) -> Iterator[list[Any]]:
    """Split the items into lists of at most `size`."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def now_ms() -> int:
    """The current unix time in ms, as MLflow's timestamps."""
    return int(time.time() * 1000)


def result_tags(result: Mapping[str, Any]) -> dict[str, str]:
    """Build the tags of a `result.json`: status, error, certificate, environment."""
    tags = {"status": str(result["status"])}
    if error := result.get("error"):
        tags["error"] = f"{error.get('type')}: {error.get('message')}"[:300]
        if tail := error.get("log_tail"):
            text = tail if isinstance(tail, str) else "\n".join(map(str, tail))
            # MLflow shows the note first on a run's page.
            tags["mlflow.note.content"] = f"**{tags['error']}**\n\n```\n{text[-2000:]}\n```"
    timing = result.get("timing") or {}
    if (disturbed := timing.get("disturbed")) is not None:
        tags["timing.disturbed"] = "; ".join(disturbed) or "no"
    if (epoch := timing.get("resumed_from_epoch")) is not None:
        tags["timing.resumed_from_epoch"] = str(epoch)
    if certificate := result.get("certificate"):
        named = isinstance(certificate, Mapping)
        tags["certificate"] = str(
            certificate.get("status") or certificate.get("id") if named else certificate
        )
    environment = flatten(result.get("environment") or {}, "environment.")
    short = [(key, value) for key, value in environment.items() if len(value) <= 100]
    return {**tags, **dict(short[:ENVIRONMENT_TAGS])}
