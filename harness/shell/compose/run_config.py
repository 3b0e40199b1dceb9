"""From what Hydra composed to a checked `RunConfig`, with everything that is wrong with it at once."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from omegaconf import DictConfig, ListConfig
from omegaconf.errors import OmegaConfBaseException

from harness.core.config.run_config import RunConfig
from harness.core.validation import ConfigError, Mistake, nearest
from harness.shell.compose.origins import SECTIONS, Origins, locate
from harness.shell.runs.inputs import DatasetCache
from harness.shell.runs.prepare import check_parts

USED = re.compile(r"\$\{(?:oc\.select:)?\s*model\.([A-Za-z_]\w*)")
OWN = {"name", "layers"}


def run_config(composed: DictConfig, origins: Origins, shelf: DatasetCache) -> RunConfig:
    """The run that a composed configuration (with its `hydra` node) describes; raises ConfigError.

    The shelf is for the mistakes that show only with the data at hand, where there are others already.
    """
    unresolved: dict[str, str] = {}
    raw = {key: _resolved(composed, key, key, unresolved) for key in map(str, composed) if key != "hydra"}
    # a key that refers to a broken one is the same mistake, not another
    first = {problem: key for key, problem in reversed(unresolved.items())}
    mistakes = [Mistake(key, problem, "a value, or ${key} of one") for problem, key in first.items()]
    mistakes += _unused_hyperparameters(origins.raw.get("model"))
    section = raw.pop("search", None)
    if isinstance(section, Mapping) and "mark" in section:  # a trial's, see `harness.shell.search.plan`
        raw["search"] = section["mark"]
    elif section is not None:
        problem = "is for one search among runs, which Hydra's default sweeper does"
        mistakes.append(Mistake("search", problem, "evenbench -m search=tpe"))
    for group in [key for key in composed.hydra.runtime.choices if key in raw and key not in SECTIONS]:
        del raw[group]
        problem = "sets a section of its own name, which means nothing"
        mistakes.append(Mistake(str(group), problem, "a file that begins with `# @package _global_`"))
    found: list[Mistake] = []
    try:
        config = RunConfig.parse(raw)
        if not mistakes:
            return config
    except ConfigError as error:
        found += error.mistakes
    found += check_parts(raw, shelf)
    mistakes += dict.fromkeys(m for m in found if m.key not in unresolved)
    raise ConfigError(locate(mistakes, [origins]))


def _resolved(parent: Any, key: str | int, place: str, unresolved: dict[str, str]) -> Any:
    """The plain value of `parent[key]`; None, and an entry in `unresolved`, for what has none."""
    try:
        node = parent[key]
    except OmegaConfBaseException as error:
        unresolved[place] = str(error.msg or error).splitlines()[0]
        return None
    if isinstance(node, DictConfig):
        return {str(k): _resolved(node, str(k), f"{place}.{k!s}", unresolved) for k in node}
    if isinstance(node, ListConfig):
        return [_resolved(node, i, f"{place}[{i}]", unresolved) for i in range(len(node))]
    return node


def _unused_hyperparameters(model: object) -> list[Mistake]:
    """Keys of the model that nothing in it refers to: a typo, or a number without effect."""
    if not isinstance(model, Mapping) or not model.get("layers"):
        return []
    used = {name for text in _texts(model) for name in USED.findall(text)}
    unused = [str(key) for key in model if key not in OWN | used]
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
