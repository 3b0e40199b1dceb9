"""The axes of a sweep: the keys that differ between its runs, except seeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from harness.core.config.flatten import flatten
from harness.core.config.identity import NOT_IN_IDENTITY
from harness.core.config.run_config import RunConfig

SECTIONS = ("model", "data", "framework", "optimizer", "schedule")
TRAINING = ("train", "optimizer", "schedule")
REPETITIONS = ("seed", "repeat")  # keys that differ between runs of the same settings
NO_AXES = (*NOT_IN_IDENTITY, *REPETITIONS)
"""Keys and sections that are not settings of a training."""
ALWAYS = ("model", "data", "framework", "execution")
IN_LABEL = ("model", "data", "framework")


def axes(configs: Iterable[RunConfig]) -> list[dict[str, str]]:
    """Return the value of each configuration on every axis: the keys of `ALWAYS`, and all others that
    vary."""
    plain = [_flat(config.to_plain()) for config in configs]
    shown = [key for key in _keys(plain) if key in ALWAYS or _varies(key, plain)]
    return [{key: flat.get(key, "-") for key in shown} for flat in plain]


def split(jobs: Iterable[Mapping[str, Any]]) -> tuple[dict[str, str], list[dict[str, str]]]:
    """Return what plain configurations have in common (without nulls), and each one's values where they
    differ.

    They may be of other versions, whose configuration this version can't read.
    """
    plain = [_flat(config) for config in jobs]
    values = {key: {flat.get(key, "-") for flat in plain} for key in _keys(plain)}
    shared = {key: value for key, (value, *more) in values.items() if not more and value != "None"}
    varied = [key for key, options in values.items() if len(options) > 1 and _varies(key, plain)]
    return shared, [{key: flat.get(key, "-") for key in varied} for flat in plain]


def _keys(plain: Iterable[Mapping[str, str]]) -> list[str]:
    return list(dict.fromkeys((*ALWAYS, *(key for flat in plain for key in flat))))


def labels(configs: Sequence[RunConfig]) -> list[str]:
    """Build a display name for each run: `fnn torch digits s0`, and the other axes that vary in the sweep."""
    all_values = axes(configs)
    first = all_values[0] if all_values else {}
    varied = [key for key in first if key not in IN_LABEL and _varies(key, all_values)]
    names: list[str] = []
    for config, values in zip(configs, all_values, strict=True):
        shown = varied if config.search is None else []  # the trial's number is shorter
        others = (f"{key.rpartition('.')[2]}={values[key]}" for key in shown if values[key] != "-")
        repeat = [f"r{config.repeat}"] if config.repeat else []
        trial = [f"trial {config.search.trial}"] if config.search else []
        names.append(" ".join([config.label(), *repeat, *trial, *others]))
    return names


def _flat(plain: Mapping[str, Any]) -> dict[str, str]:
    """Flatten a plain configuration: a section's name becomes the value of the section's key."""
    flat = flatten({key: value for key, value in plain.items() if key not in NO_AXES})
    names = {section: flat.pop(f"{section}.name") for section in SECTIONS}
    inner = ("model.layers", "framework.")
    return names | {key: value for key, value in flat.items() if not key.startswith(inner)}


def _varies(key: str, plain: Sequence[Mapping[str, str]]) -> bool:
    """Whether a key varies within its owner: Adam's epsilon is not compared with SGD's.

    The execution belongs to the framework, which sets its default. Training settings also belong to the model
    and the data, for which an experiment may set them.
    """
    section = "framework" if key == "execution" else key.partition(".")[0]
    owners = (section, "model", "data") if section in TRAINING else (section,)
    values: dict[tuple[str, ...], set[str]] = {}
    for flat in plain:
        present = (name for name in owners if name in SECTIONS and name in flat)
        group = () if key in SECTIONS else tuple(flat[name] for name in present)
        values.setdefault(group, set()).add(flat.get(key, "-"))
    return any(len(options) > 1 for options in values.values())
