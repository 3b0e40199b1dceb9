"""Ready-made views for MLflow's runs page, and the URLs that open them.

By default the UI lists a study's runs collapsed under their parent and charts the parent only. A view is an
experiment tag `mlflow.sharedViewState.<key>` with the page's state as JSON; it appears in the Views menu and
opens with `viewStateShareKey=<key>`. The format is undocumented (taken from MLflow 3.17's page), so MLflow is
pinned and a browser test opens the views.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

TRIALS = "tags.kind = 'trial'"
AXES = ("model", "framework", "data", "optimizer", "execution", "precision", "device", "seed")


@dataclass(frozen=True)
class View:
    """A saved state of the runs page: one chart (`LINE` or `BAR`) for each of `metrics`."""

    key: str
    name: str
    order_by: str
    ascending: bool
    columns: tuple[str, ...]
    chart: str
    metrics: tuple[str, ...]
    group_by: tuple[str, ...] = ()


def _metric(key: str) -> str:
    return f"metrics.`{key}`"


def _tag(key: str) -> str:
    return f"tags.`{key}`"


VIEWS = (
    View(
        key="evenbench-leaderboard",
        name="Leaderboard",
        order_by=_metric("test/accuracy"),
        ascending=False,
        columns=(
            *(_tag(axis) for axis in AXES),
            *map(_metric, ("test/accuracy", "test/loss", "speed/step_ms", "speed/samples_per_second")),
            *map(_metric, ("time/compile_s", "time/train_s", "memory/peak_mb")),
        ),
        chart="BAR",
        metrics=(
            *("test/accuracy", "speed/step_ms", "speed/samples_per_second"),
            *("time/compile_s", "memory/peak_mb"),
        ),
        group_by=("group",),
    ),
    View(
        key="evenbench-curves",
        name="Curves",
        order_by=_metric("val/loss"),
        ascending=True,
        columns=(*(_tag(axis) for axis in AXES), *map(_metric, ("train/loss", "val/loss", "val/accuracy"))),
        chart="LINE",
        metrics=("train/loss", "val/loss", "val/accuracy"),
    ),
)


def view_tags() -> dict[str, str]:
    """Return the experiment tags that define the views."""
    return {f"mlflow.sharedViewState.{view.key}": _envelope(view) for view in VIEWS}


def runs_url(base: str, experiment_id: str, view: View = VIEWS[0]) -> str:
    """Return the URL that opens `view` as charts, on the UI at `base`."""
    query = urlencode(
        {
            "viewStateShareKey": view.key,
            "compareRunsMode": "CHART",
            "workflowType": "machine_learning",
        }
    )
    return f"{base.rstrip('/')}/#/experiments/{experiment_id}/runs?{query}"


def _envelope(view: View) -> str:
    # The times must be numbers; a constant keeps the tag reproducible.
    return json.dumps({"name": view.name, "createdAt": 1, "updatedAt": 1, "state": json.dumps(_state(view))})


def _state(view: View) -> dict[str, Any]:
    return {
        "searchFilter": TRIALS,
        "orderByKey": view.order_by,
        "orderByAsc": view.ascending,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": list(view.columns),
        "runsHidden": [],
        "runsHiddenMode": "FIRST_20_RUNS",
        "compareRunCharts": [
            {
                "uuid": f"{view.key}-{index}",
                "type": view.chart,
                "runsCountToCompare": 20,
                "metricSectionId": view.key,
                "deleted": False,
                "isGenerated": False,
                "metricKey": metric,
                **({"selectedMetricKeys": [metric], **_LINE} if view.chart == "LINE" else {}),
            }
            for index, metric in enumerate(view.metrics)
        ],
        "compareRunSections": [
            {
                **{"uuid": view.key, "name": view.name, "display": True},
                **{"isReordered": False, "deleted": False, "columns": 2},
            }
        ],
        "autoRefreshEnabled": True,
        "hideEmptyCharts": True,
        "useGroupedValuesInCharts": True,
        "groupBy": _group(view.group_by),
    }


_LINE = {
    "lineSmoothness": 0,
    "scaleType": "linear",
    "xAxisScaleType": "linear",
    "xAxisKey": "step",
    "yAxisKey": "metric",
    "yAxisExpressions": [],
    "selectedXAxisMetricKey": "",
    "ignoreOutliers": False,
    "useGlobalXaxisKey": True,
    "useGlobalLineSmoothing": True,
    "range": {},
}


def _group(axes: tuple[str, ...]) -> dict[str, Any] | None:
    if not axes:
        return None
    keys = [{"mode": "tag", "groupByData": axis} for axis in axes]
    return {"aggregateFunction": "average", "groupByKeys": keys}
