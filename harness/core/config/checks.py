"""Checks of raw sections, so that a mistake in one does not hide those in another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from harness.core.config.model_specs import read_spec
from harness.core.network import ModelSpec
from harness.core.validation import ConfigError, Mistake, nearest

BEST: Literal["best"] = "best"
"""The execution that stands for the fastest one, until the shell has found out which that is."""


def layer_mistakes(model: object) -> tuple[Mistake, ...]:
    if not isinstance(model, Mapping) or "layers" not in model:
        return ()
    try:
        read_spec(model["layers"])
    except ConfigError as error:
        return error.mistakes
    return ()


def readable_spec(model: object) -> ModelSpec | None:
    """The layer tree, or None for one that can't be read."""
    readable = isinstance(model, Mapping) and "layers" in model and not layer_mistakes(model)
    return read_spec(model["layers"]) if isinstance(model, Mapping) and readable else None


def device_mistakes(device: object) -> list[Mistake]:
    if not isinstance(device, str):
        return []
    kind, colon, index = device.partition(":")
    if kind in ("cpu", "cuda", "auto") and (not colon or (kind == "cuda" and index.isdigit())):
        return []
    allowed = "cpu, cuda, cuda:<number>, auto"
    return [Mistake("device", f"{device!r} is not a device", allowed, nearest(kind, ("cpu", "cuda", "auto")))]


def execution_mistakes(plain: Mapping[str, Any]) -> list[Mistake]:
    framework, execution = plain.get("framework"), plain.get("execution")
    if not isinstance(framework, Mapping) or (known := _executions(framework)) is None:
        return []
    kind = str(plain.get("device")).partition(":")[0]
    possible = known.get(kind) or known.get("cpu") or []
    if execution in possible or (possible and execution == BEST):
        return []
    problem = f"{framework.get('name')} on {kind} has no execution {execution!r}"
    choices = [*map(str, possible), BEST]
    return [Mistake("execution", problem, ", ".join(choices), nearest(str(execution), choices))]


def environment_mistakes(framework: object) -> list[Mistake]:
    if not isinstance(framework, Mapping) or (known := _executions(framework)) is None:
        return []
    if not isinstance(framework.get("execution_env"), Mapping):
        return []
    names = sorted({str(each) for of_device in known.values() for each in of_device})
    key, unknown = "framework.execution_env", [str(n) for n in framework["execution_env"] if n not in names]
    return [Mistake(f"{key}.{n}", "no such execution", ", ".join(names), nearest(n, names)) for n in unknown]


def _executions(framework: Mapping[str, Any]) -> Mapping[str, Sequence[object]] | None:
    """What a framework's section says that it can do, by device; None where that can't be read."""
    found = framework.get("executions")
    if isinstance(found, Mapping) and all(isinstance(each, list | tuple) for each in found.values()):
        return found
    return None
