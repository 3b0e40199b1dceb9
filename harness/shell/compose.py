"""From what Hydra composed to a checked `RunConfig`; each mistake names the file or the override it is in."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness.config import RunConfig
from harness.parse import ConfigError, Mistake, nearest

REFERENCE = re.compile(r"\$\{(?:oc\.select:)?\s*model\.([A-Za-z_]\w*)")
OWN = {"name", "layers"}


def run_config(composed: DictConfig) -> RunConfig:
    """The run that a composed configuration (with its `hydra` node) describes; raises ConfigError."""
    sources = _sources(composed)
    ours = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
    mistakes = _unused_hyperparameters(ours)
    try:
        raw: Any = OmegaConf.to_container(ours, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        mistakes.append(Mistake(error.full_key or "", str(error.msg or error).splitlines()[0]))
        raise _with_source(ConfigError(mistakes), sources) from error
    try:
        config = RunConfig.parse(raw)
    except ConfigError as error:
        raise _with_source(ConfigError([*mistakes, *error.mistakes]), sources) from error
    if mistakes:
        raise _with_source(ConfigError(mistakes), sources)
    return config


def _unused_hyperparameters(ours: DictConfig) -> list[Mistake]:
    """Keys of the model that nothing in it refers to: a typo, or a number without effect."""
    model = OmegaConf.to_container(ours, resolve=False)
    section = model.get("model") if isinstance(model, dict) else None
    if not isinstance(section, Mapping):
        return []
    used = {name for text in _texts(section) for name in REFERENCE.findall(text)}
    unused = [str(key) for key in section if key not in OWN | used]
    problem, allowed = "no layer of the model uses it", ", ".join(sorted(used))
    return [Mistake(f"model.{key}", problem, allowed, nearest(key, used)) for key in unused]


def _texts(value: object) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


def _sources(composed: DictConfig) -> dict[str, str]:
    """Where a key, or what begins with it, was set: a group's file, `config.yaml`, or an override."""
    hydra = composed.hydra
    sources = {str(key): "conf/config.yaml" for key in composed}
    for group, choice in hydra.runtime.choices.items():
        if choice is not None and "/" not in str(group):
            sources[str(group)] = f"conf/{group}/{choice}.yaml"
    known = {field.name for field in fields(RunConfig)}
    for override in hydra.overrides.task:
        text = str(override).lstrip("+")
        key = text.lstrip("~").split("=")[0]
        if key not in hydra.runtime.choices:
            sources[key] = f"the command line ({text})"
        first = key.split(".")[0]
        if first not in known:
            sources[first] = f"the command line ({text})"
    return sources


def _with_source(error: ConfigError, sources: Mapping[str, str]) -> ConfigError:
    return ConfigError(replace(mistake, source=_source(mistake.key, sources)) for mistake in error.mistakes)


def _source(key: str, sources: Mapping[str, str]) -> str:
    """The source of the longest beginning of `key` that has one."""
    while key not in sources:
        key, dot, _ = key.replace("[", ".").rpartition(".")
        if not dot:
            return ""
    return sources[key]
