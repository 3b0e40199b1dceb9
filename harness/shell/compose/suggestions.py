"""Suggestions for a model that does not fit the data: data sets for the model, and models for the data.

No data are loaded. The files of a group, the user's own included, are read by one Hydra composition that
includes all of them, since one composition each would take a second or two.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import hydra
import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness.core.config.run_config import Misfit, ModelConfig, model_config, resolve_model
from harness.core.data import dataset
from harness.core.data.dataset import DataConfig, Sample
from harness.core.validation import ConfigError, Mistake, parse

PACKAGE = "alternatives"  # the package in the composed configuration that holds the files


def with_alternatives(mistakes: Sequence[Mistake]) -> list[Mistake]:
    """The mistakes, each `Misfit` with suggestions as hints; needs an initialised Hydra."""
    if not any(isinstance(mistake, Misfit) for mistake in mistakes):
        return list(mistakes)
    models, samples = list(_models(_sections("model"))), list(_samples(_sections("data")))
    return [
        replace(mistake, hints=_hints(mistake, models, samples)) if isinstance(mistake, Misfit) else mistake
        for mistake in mistakes
    ]


def _hints(misfit: Misfit, models: Iterable[ModelConfig], samples: Iterable[Sample]) -> tuple[str, ...]:
    suitable = [sample.name for sample in samples if _fits(misfit.model, sample)]
    if not suitable:
        return (f"data that {misfit.model.name} takes: none, as it is configured",)
    able = [model.name for model in models if _fits(model, misfit.sample)]
    return (
        f"data that {misfit.model.name} takes: {', '.join(suitable)}",
        f"models that take {misfit.sample.name}: {', '.join(able)}",
    )


def _fits(model: ModelConfig, sample: Sample) -> bool:
    try:
        resolve_model(model, "auto", sample)
    except ConfigError:
        return False
    return True


def _models(sections: Mapping[str, Any]) -> Iterator[ModelConfig]:
    for choice, section in sections.items():
        try:
            yield replace(model_config(section), name=choice)
        except ConfigError:  # a file with mistakes can't be suggested
            continue


def _samples(sections: Mapping[str, Any]) -> Iterator[Sample]:
    for choice, section in sections.items():
        try:
            yield replace(dataset.sample(parse(DataConfig, section, "data")), name=choice)
        except ConfigError:
            continue


def _sections(group: str) -> dict[str, Any]:
    """The section that each file of a group yields if it is chosen, by the file's name."""
    loader = GlobalHydra.instance().config_loader()
    choices = sorted(loader.get_group_options(group, ObjectType.CONFIG))
    sections: dict[str, Any] = {}
    for raw in _composed(group, choices):
        others = raw.pop(PACKAGE)
        for choice, section in others.items():
            try:
                full = OmegaConf.create(raw | {group: section})
                sections[choice] = OmegaConf.to_container(full[group], resolve=True)
            except OmegaConfBaseException:
                continue
    return sections


def _composed(group: str, choices: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The default configuration with these files, in several parts if some can't be read."""
    if not choices:
        return
    try:
        config = hydra.compose("config", [f"+{group}@{PACKAGE}.{choice}={choice}" for choice in choices])
        raw: Any = OmegaConf.to_container(config, resolve=False)
        yield raw
    except (HydraException, OmegaConfBaseException, yaml.YAMLError):
        if len(choices) > 1:
            half = len(choices) // 2
            yield from _composed(group, choices[:half])
            yield from _composed(group, choices[half:])
