"""From what Hydra composed to checked `RunConfig`s, with all mistakes at once."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from omegaconf import DictConfig, ListConfig
from omegaconf.errors import OmegaConfBaseException

from harness.core.config.run_config import RunConfig, resolve_model
from harness.core.data import dataset
from harness.core.validation import ConfigError, Mistake, nearest
from harness.shell.compose.origins import SECTIONS, Origins, locate
from harness.shell.runs.inputs import DatasetCache
from harness.shell.runs.interning import Interner
from harness.shell.runs.prepare import check_parts

USED = re.compile(r"\$\{(?:oc\.select:)?\s*model\.([A-Za-z_]\w*)")
OWN = {"name", "layers"}


def read_run_configs(
    composed: Iterable[DictConfig],
) -> tuple[list[RunConfig], list[Origins], list[Mistake]]:
    """The runs of a command, the origins of their values, and all mistakes with their origins.

    Every model is resolved for its data here, before any data set is loaded.
    """
    configs: list[RunConfig] = []
    origins: list[Origins] = []
    mistakes: list[Mistake] = []
    datasets, interner = DatasetCache(), Interner()
    for config in composed:
        origin = Origins.of(config)
        origins.append(Origins(origin.places, interner.intern_values(origin.raw)))
        try:
            run = run_config(config, origins[-1], datasets)
            resolve_model(run.model, run.train.loss, dataset.sample(run.data))
            configs.append(interner.intern_config(run))
        except ConfigError as error:
            mistakes.extend(locate(error.mistakes, origins[-1:]))
    return configs, origins, mistakes


def run_config(composed: DictConfig, origins: Origins, datasets: DatasetCache) -> RunConfig:
    """The run that a composed configuration (with its `hydra` node) describes; raises ConfigError.

    `datasets` serves to report mistakes that show only with the data at hand, when there are others anyway.
    """
    unresolved: dict[str, str] = {}
    raw = {key: _resolved(composed, key, key, unresolved) for key in map(str, composed) if key != "hydra"}
    # a key that refers to a broken one is the same mistake, not another
    first = {problem: key for key, problem in reversed(unresolved.items())}
    mistakes = [Mistake(key, problem, "a value, or ${key} of one") for problem, key in first.items()]
    mistakes += _unused_hyperparameters(origins.raw.get("model"))
    section = raw.pop("search", None)
    if isinstance(section, Mapping) and "mark" in section:  # a trial's run, see `harness.shell.search.plan`
        raw["search"] = section["mark"]
    elif section is not None:
        problem = "describes a search, which needs Hydra's default sweeper"
        mistakes.append(Mistake("search", problem, "evenbench -m search=tpe"))
    for group in [key for key in composed.hydra.runtime.choices if key in raw and key not in SECTIONS]:
        del raw[group]
        problem = "sets a section of its own name, which has no meaning"
        mistakes.append(Mistake(str(group), problem, "a file that begins with `# @package _global_`"))
    invalid: list[Mistake] = []
    try:
        config = RunConfig.parse(raw)
        if not mistakes:
            return config
    except ConfigError as error:
        invalid += error.mistakes
    invalid += check_parts(raw, datasets)
    mistakes += dict.fromkeys(mistake for mistake in invalid if mistake.key not in unresolved)
    raise ConfigError(locate(mistakes, [origins]))


def _resolved(parent: Any, key: str | int, place: str, unresolved: dict[str, str]) -> Any:
    """The plain value of `parent[key]`; None and an entry in `unresolved` if it can't be resolved."""
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
    """Keys of the model that no layer refers to: a typo, or a number without effect."""
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
