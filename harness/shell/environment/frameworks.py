"""The frameworks described by configuration folders, read without composing a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

import harness
from harness.core.config.run_config import FrameworkConfig
from harness.core.validation import ConfigError, Mistake, parse
from harness.shell.environment.versions import installed

PACKAGE = Path(harness.__file__).resolve().parent


def conf_folder() -> Path:
    """The configuration folder: the checkout's, or the copy inside an installed package."""
    checkout = PACKAGE.parent / "conf"
    return checkout if (checkout / "config.yaml").exists() else PACKAGE / "_conf"


def frameworks(folders: Sequence[Path]) -> dict[str, FrameworkConfig]:
    """The frameworks of configuration folders by file name; the first folder wins for equal names.

    Raises ConfigError with a mistake for each file that can't be read.
    """
    configs: dict[str, FrameworkConfig] = {}
    mistakes: list[Mistake] = []
    for path in (path for folder in folders for path in sorted((folder / "framework").glob("*.yaml"))):
        try:
            plain = OmegaConf.to_container(OmegaConf.load(path))
            configs.setdefault(path.stem, parse(FrameworkConfig, plain, "framework"))
        except (OmegaConfBaseException, YAMLError) as error:
            mistakes.append(Mistake("framework", str(error), source=str(path)))
        except ConfigError as error:
            mistakes += [replace(mistake, source=str(path)) for mistake in error.mistakes]
    if mistakes:
        raise ConfigError(mistakes)
    return configs


def installed_frameworks() -> list[str]:
    """The project's own frameworks whose packages are installed in this environment, by name."""
    folder = conf_folder()
    names = sorted(path.stem for path in (folder / "framework").glob("*.yaml"))
    return [name for name in names if is_installed(name, [folder])]


def is_installed(framework: str, folders: Sequence[Path]) -> bool:
    """Whether the packages of a framework are installed; `folders` are searched for its file in order."""
    files = [folder / "framework" / f"{framework}.yaml" for folder in folders]
    existing = [path for path in files if path.exists()]
    return bool(existing) and installed(tuple(OmegaConf.load(existing[0]).distributions))
