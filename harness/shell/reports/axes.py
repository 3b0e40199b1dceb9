"""What tells the runs of a sweep apart: the keys that differ between them, seeds aside."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from harness.core.config.flatten import flatten
from harness.core.config.identity import NOT_IN_IDENTITY
from harness.core.config.run_config import RunConfig

SECTIONS = ("model", "data", "framework", "optimizer", "schedule")
TRAINING = ("train", "optimizer", "schedule")
REPETITIONS = ("seed", "repeat")  # what tells runs of the same settings apart
NO_AXES = (*NOT_IN_IDENTITY, *REPETITIONS)
"""Keys and sections that are no settings of a training."""
ALWAYS = ("model", "data", "framework", "execution")
IN_LABEL = ("model", "data", "framework")


def axes(configs: Iterable[RunConfig]) -> list[dict[str, str]]:
    """For each configuration its value on every axis: those of `ALWAYS`, and whatever else varies."""
    plain = [_flat(config.to_plain()) for config in configs]
    shown = [key for key in _keys(plain) if key in ALWAYS or _varies(key, plain)]
    return [{key: flat.get(key, "-") for key in shown} for flat in plain]


def split(jobs: Iterable[Mapping[str, Any]]) -> tuple[dict[str, str], list[dict[str, str]]]:
    """What plain configurations have in common, and each one's value where they differ; null is left out of
    the common part. They may be of a version whose configuration this one can't read."""
    plain = [_flat(config) for config in jobs]
    values = {key: {flat.get(key, "-") for flat in plain} for key in _keys(plain)}
    shared = {key: value for key, (value, *more) in values.items() if not more and value != "None"}
    varied = [key for key, found in values.items() if len(found) > 1 and _varies(key, plain)]
    return shared, [{key: flat.get(key, "-") for key in varied} for flat in plain]


def _keys(plain: Iterable[Mapping[str, str]]) -> list[str]:
    return list(dict.fromkeys((*ALWAYS, *(key for flat in plain for key in flat))))


def labels(configs: Sequence[RunConfig]) -> list[str]:
    """A name for each run, for people: `fnn torch digits s0`, and what else varies in the sweep."""
    found = axes(configs)
    varied = [key for key in found[0] if key not in IN_LABEL and _varies(key, found)] if found else []
    names: list[str] = []
    for config, values in zip(configs, found, strict=True):
        shown = varied if config.search is None else []  # the trial's number says it shorter
        others = (f"{key.rpartition('.')[2]}={values[key]}" for key in shown if values[key] != "-")
        again = [f"r{config.repeat}"] if config.repeat else []
        trial = [f"trial {config.search.trial}"] if config.search else []
        names.append(" ".join([config.label(), *again, *trial, *others]))
    return names


def _flat(plain: Mapping[str, Any]) -> dict[str, str]:
    """A plain configuration, flat: a section's name under the section itself, its other keys below it."""
    flat = flatten({key: value for key, value in plain.items() if key not in NO_AXES})
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
