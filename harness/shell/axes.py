"""What tells the runs of a sweep apart: the keys that differ between them, seeds aside."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from harness.config import RunConfig
from harness.shell.entities import flatten

SECTIONS = ("model", "data", "framework", "optimizer", "schedule")
TRAINING = ("train", "optimizer", "schedule")
NO_AXES = {
    "seed",
    "repeat",
    "study",
    "results_dir",
    "force",
    "certify",
    "limit",
    "isolation",
    "timeout_s",
    "tracking.uri",
}
ALWAYS = ("model", "data", "framework", "execution")
IN_LABEL = ("model", "data", "framework")


def axes(configs: Iterable[RunConfig]) -> list[dict[str, str]]:
    """For each configuration its value on every axis: those of `ALWAYS`, and whatever else varies."""
    plain = [_flat(config) for config in configs]
    keys = dict.fromkeys((*ALWAYS, *(key for flat in plain for key in flat)))
    shown = [key for key in keys if key in ALWAYS or _varies(key, plain)]
    return [{key: flat.get(key, "-") for key in shown} for flat in plain]


def labels(configs: Sequence[RunConfig]) -> list[str]:
    """A name for each run, for people: `fnn torch digits s0`, and what else varies in the sweep."""
    found = axes(configs)
    varied = [key for key in found[0] if key not in IN_LABEL and _varies(key, found)] if found else []
    names: list[str] = []
    for config, values in zip(configs, found, strict=True):
        others = (f"{key.rpartition('.')[2]}={values[key]}" for key in varied if values[key] != "-")
        again = [f"r{config.repeat}"] if config.repeat else []
        names.append(" ".join([config.label(), *again, *others]))
    return names


def _flat(config: RunConfig) -> dict[str, str]:
    """A configuration, flat: a section's name under the section itself, its other keys below it."""
    plain: Mapping[str, Any] = config.to_plain()
    flat = {key: str(value) for key, value in flatten(plain).items() if key not in NO_AXES}
    names = {section: flat.pop(f"{section}.name") for section in SECTIONS}
    inner = ("model.layers", "framework.")
    return names | {key: value for key, value in flat.items() if not key.startswith(inner)}


def _varies(key: str, plain: Sequence[Mapping[str, str]]) -> bool:
    """Whether a key says more than what it belongs to: Adam's epsilon differs from no SGD's.

    An execution belongs to its framework, which names the default; how long and how fast to train also
    belongs to the model and the data, for which an experiment may set it.
    """
    section = "framework" if key == "execution" else key.partition(".")[0]
    owners = (section, "model", "data") if section in TRAINING else (section,)
    values: dict[tuple[str, ...], set[str]] = {}
    for flat in plain:
        known = (name for name in owners if name in SECTIONS and name in flat)
        group = () if key in SECTIONS else tuple(flat[name] for name in known)
        values.setdefault(group, set()).add(flat.get(key, "-"))
    return any(len(found) > 1 for found in values.values())
