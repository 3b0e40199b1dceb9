"""Compose configurations like the command line, by Hydra's compose call, without starting anything."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import hydra
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from harness.core.config.run_config import RunConfig
from harness.shell.compose import hydra as task
from harness.shell.compose.origins import Origins
from harness.shell.compose.run_config import run_config
from harness.shell.runs.inputs import DatasetCache
from tests.support.paths import CONF


def choices(group: str) -> list[str]:
    """The names of a group's files."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


@contextmanager
def composing() -> Iterator[None]:
    """Initialise Hydra, so that `composed` and `config_of` work inside the context."""
    GlobalHydra.instance().clear()
    task.prepare_hydra([CONF])
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def composed(*overrides: str) -> DictConfig:
    """Hydra's configuration for the overrides, with its own `hydra` node."""
    assert str(task.PACKAGE) in sys.path  # else Hydra would not find the launcher that conf/ names
    return hydra.compose("config", overrides=list(overrides), return_hydra_config=True)


def config_of(*overrides: str) -> RunConfig:
    """The checked configuration; raises ConfigError."""
    config = composed(*overrides)
    return run_config(config, Origins.of(config), DatasetCache())
