"""Checks of raw sections that types cannot express: layer tree, device, execution, environment.

They read the raw mapping, not the parsed `RunConfig`, which does not exist if any section has a wrong type. A
mistake in one section therefore does not hide those in another, and the user sees all of them at once. A
section that is missing or has the wrong type passes here: `RunConfig.parse` reports it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from harness.core.config.model_specs import read_spec
from harness.core.network import ModelSpec
from harness.core.validation import ConfigError, Mistake, nearest

BEST: Literal["best"] = "best"
"""The execution that stands for the fastest one, until the shell has determined which that is."""


def layer_mistakes(model: object) -> tuple[Mistake, ...]:
    """Return the mistakes in the layer tree of the section `model`."""
    if not isinstance(model, Mapping) or "layers" not in model:
        return ()
    try:
        read_spec(model["layers"])
    except ConfigError as error:
        return error.mistakes
    return ()


def readable_spec(model: object) -> ModelSpec | None:
    """Read the layer tree of the section `model`; None if it has mistakes."""
    readable = isinstance(model, Mapping) and "layers" in model and not layer_mistakes(model)
    return read_spec(model["layers"]) if isinstance(model, Mapping) and readable else None


def device_mistakes(device: object) -> list[Mistake]:
    """Return a mistake unless `device` is cpu, cuda, cuda:<number> or auto."""
    if not isinstance(device, str):
        return []
    kind, colon, index = device.partition(":")
    if kind in ("cpu", "cuda", "auto") and (not colon or (kind == "cuda" and index.isdigit())):
        return []
    allowed = "cpu, cuda, cuda:<number>, auto"
    return [Mistake("device", f"{device!r} is not a device", allowed, nearest(kind, ("cpu", "cuda", "auto")))]


def execution_mistakes(plain: Mapping[str, Any]) -> list[Mistake]:
    """Return a mistake if the framework cannot run the requested execution on the requested device."""
    framework, execution = plain.get("framework"), plain.get("execution")
    if not isinstance(framework, Mapping) or (by_device := _executions(framework)) is None:
        return []
    kind = str(plain.get("device")).partition(":")[0]
    possible = by_device.get(kind) or by_device.get("cpu") or []
    if execution in possible or (possible and execution == BEST):
        return []
    problem = f"{framework.get('name')} on {kind} has no execution {execution!r}"
    choices = [*map(str, possible), BEST]
    return [Mistake("execution", problem, ", ".join(choices), nearest(str(execution), choices))]


def environment_mistakes(framework: object) -> list[Mistake]:
    """Return a mistake for each execution in `framework.execution_env` that the framework does not have."""
    if not isinstance(framework, Mapping) or (by_device := _executions(framework)) is None:
        return []
    if not isinstance(framework.get("execution_env"), Mapping):
        return []
    names = sorted({str(execution) for executions in by_device.values() for execution in executions})
    key, unknown = "framework.execution_env", [str(n) for n in framework["execution_env"] if n not in names]
    return [Mistake(f"{key}.{n}", "no such execution", ", ".join(names), nearest(n, names)) for n in unknown]


def _executions(framework: Mapping[str, Any]) -> Mapping[str, Sequence[object]] | None:
    """Return the executions by device from a framework's section; None if it cannot be read."""
    by_device = framework.get("executions")
    if isinstance(by_device, Mapping) and all(isinstance(each, list | tuple) for each in by_device.values()):
        return by_device
    return None
