"""Where a value was set: the file of a group, an experiment, `config.yaml`, or an override.

Error messages name the place to change, not only the key. The command line takes precedence over an
experiment, and that over a group's file; a layer with `units: ${model.units}` has its value from where
`model.units` was set.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from harness.core.config.run_config import RunConfig
from harness.core.validation import Mistake

SECTIONS = frozenset(field.name for field in fields(RunConfig))
PARTS = re.compile(r"[^.\[\]]+")
REFERENCE = re.compile(r"\$\{(?:oc\.select:)?\s*([A-Za-z_][\w.]*)")


@dataclass(frozen=True)
class Origins:
    """`places` maps keys to the source of their values; `raw` holds the values before interpolation."""

    places: Mapping[str, str]
    raw: Mapping[str, Any]

    @classmethod
    def of(cls, composed: DictConfig) -> Origins:
        """The origins of a configuration that Hydra composed (with its `hydra` node)."""
        raw: Any = OmegaConf.to_container(composed, resolve=False)
        hydra = raw.pop("hydra")
        sources = hydra["runtime"]["config_sources"]
        folders = tuple(source["path"] for source in sources if source["schema"] == "file")
        places = dict.fromkeys(raw, _file(folders, "config.yaml"))
        everywhere: dict[str, str] = {}
        for group, choice in hydra["runtime"]["choices"].items():
            if choice is None or "/" in group:
                continue
            places[group] = path = _file(folders, f"{group.partition('@')[0]}/{choice}.yaml")
            if group not in SECTIONS:  # an experiment: it sets keys of other sections
                everywhere |= dict.fromkeys(_keys_in(path), path)
        places |= everywhere
        for text in hydra["overrides"]["task"]:
            plain = text.lstrip("+")
            key = plain.lstrip("~").split("=")[0]
            if key not in hydra["runtime"]["choices"]:
                places[key] = f"the override {plain}"
        return cls(places, raw)

    def place(self, key: str) -> str:
        """The source of `key`, or an empty string."""
        holder = self._set_at(key)
        source = self._nearest(holder)
        if not source:
            return self.places.get(self._nearest(key), "")
        is_named = holder in (key, source)  # otherwise the source is a file, and the key in it is added
        return self.places[source] + ("" if is_named else f" ({holder})")

    def _nearest(self, key: str) -> str:
        """The longest prefix of `key` that has a source, or an empty string."""
        while key and key not in self.places:
            key = key.replace("[", ".").rpartition(".")[0]
        return key

    def _set_at(self, key: str) -> str:
        """The key that holds the value of `key`: itself, or the target of an interpolation."""
        node: Any = self.raw
        for part in PARTS.findall(key):
            if isinstance(node, Mapping):
                node = node.get(part)
            elif isinstance(node, list) and part.isdigit() and int(part) < len(node):
                node = node[int(part)]
            if isinstance(node, str) and (reference := REFERENCE.match(node)):
                return reference[1]
        return key


def locate(mistakes: Iterable[Mistake], origins: Sequence[Origins]) -> list[Mistake]:
    """The mistakes with their sources, where all configurations of a sweep agree on the source."""
    located: list[Mistake] = []
    for mistake in mistakes:
        places = {origin.place(mistake.key) for origin in origins} if not mistake.source else set()
        located.append(replace(mistake, source=places.pop()) if len(places) == 1 else mistake)
    return located


@functools.cache
def _file(folders: tuple[str, ...], name: str) -> str:
    """The first existing file of this name, which is the one that Hydra uses."""
    paths = [Path(folder) / name for folder in folders]
    path = next((path for path in paths if path.exists()), Path(name))
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


@functools.cache
def _keys_in(path: str) -> frozenset[str]:
    def keys(node: object, prefix: str) -> Iterable[str]:
        if isinstance(node, Mapping) and node:
            for key, value in node.items():
                yield from keys(value, f"{prefix}.{key}" if prefix else str(key))
        elif prefix:
            yield prefix

    loaded = OmegaConf.to_container(OmegaConf.load(path), resolve=False) if Path(path).exists() else {}
    return frozenset(keys(loaded, ""))
