"""Drive Hydra: from the command line to checked configurations, and on to what the command does with them.

Hydra calls back into this module, once for a single run or through the launcher for a sweep. What the
callbacks share (the command's action and the mistakes found before Hydra started) is kept in a stack here for
the duration of the command.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import harness
from harness.core.config.run_config import RunConfig
from harness.core.validation import ConfigError, Mistake
from harness.shell.compose import overrides
from harness.shell.compose.origins import Origins, locate
from harness.shell.compose.run_config import read_run_configs
from harness.shell.compose.suggestions import with_alternatives
from harness.shell.engines.protocol import Engine, JobShouldContinue
from harness.shell.environment.frameworks import conf_folder, is_installed
from harness.shell.session.session import Session

PACKAGE = Path(harness.__file__).resolve().parent
OK, WRONG = 0, 2

Action = Callable[[list[RunConfig], Engine | None, JobShouldContinue | None], Sequence[object]]
"""What a command does with its configurations; the values it returns, one for each, are given to Hydra."""


@dataclass
class ComposedCommand:
    """The command in progress.

    `mistakes` were found before Hydra started. `session` is set for a command that trains, and so may search;
    while it does (`searching`), an impossible combination is a failed trial. `options` are Hydra's own.
    """

    action: Action
    mistakes: list[Mistake]
    session: Session | None = None
    options: Sequence[str] = ()
    groups: overrides.Groups = field(default_factory=dict)
    refused: bool = False
    searching: bool = False


_commands: list[ComposedCommand] = []


def current_command() -> ComposedCommand:
    """The command in progress."""
    return _commands[-1]


def compose(arguments: Sequence[str], action: Action, session: Session | None = None) -> int:
    """Have Hydra compose what the arguments describe, and act on it; returns Hydra's exit status.

    `session` is that of `action` if a sweep may be a search. Raises ConfigError.
    """
    options, texts, others = overrides.split(arguments)
    folders = [conf_folder()]
    if options.config_dir:
        folders.append(Path(options.config_dir))
        overrides.check_folder(folders[1], folders[0])
    if options.shell_completion:
        prepare_hydra(folders)
        return _run_hydra(texts + others)
    groups = overrides.find_groups(folders)
    valid, mistakes = overrides.check(texts, groups)
    if mistakes and (options.cfg or options.info):
        raise ConfigError(mistakes)
    prepare_hydra(folders)
    command = ComposedCommand(action, mistakes, session, others, groups)
    _commands.append(command)
    try:
        status = _run_hydra(valid + others)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise ConfigError([*mistakes, *overrides.refusal(error, folders[1:])]) from error
    finally:
        _commands.pop()
    if mistakes and not command.refused:  # Hydra ended before it called back
        raise ConfigError(mistakes)
    return status


def collect(arguments: Sequence[str]) -> list[RunConfig]:
    """The checked configurations of a sweep; nothing is run. Raises ConfigError."""
    collected: list[RunConfig] = []

    def take(
        configs: list[RunConfig], engine: Engine | None, should_continue: JobShouldContinue | None
    ) -> Sequence[object]:
        collected.extend(configs)
        return configs

    status = compose(["--multirun", *arguments], take)
    if status:
        raise SystemExit(status)
    return collected


def execute(
    composed: Iterable[DictConfig],
    engine: Engine | None = None,
    should_continue: JobShouldContinue | None = None,
) -> Sequence[Any]:
    """Check composed configurations and act on them; a wrong request ends the command.

    `engine` and `should_continue` come from the launcher, see `harness.shell.engines.protocol`. Returns what
    the command's action returns for each: an `Outcome` if it trains.
    """
    command = current_command()
    configs, origins, mistakes = read_run_configs(composed)
    with _refusing(command, origins):
        if command.mistakes or mistakes:
            raise ConfigError([*command.mistakes, *mistakes])
        return command.action(configs, engine, should_continue)


@contextmanager
def _refusing(command: ComposedCommand, origins: Sequence[Origins]) -> Iterator[None]:
    """Print the mistakes of a ConfigError with their origins, and end Hydra with status 2."""
    try:
        yield
    except ConfigError as error:
        if command.searching:
            raise
        command.refused = True
        mistakes = with_alternatives(locate(error.mistakes, origins))
        print(ConfigError(mistakes), file=sys.stderr)
        raise SystemExit(WRONG) from None


def _run_hydra(arguments: list[str]) -> int:
    """Let Hydra compose and call back; raises its errors, such as a bad defaults list."""

    def task(config: DictConfig) -> object:
        # the task's own argument lacks the `hydra` node, which knows the origin of each value
        full = HydraConfig.instance().cfg
        merged = OmegaConf.merge(full, config) if full is not None else config
        assert isinstance(merged, DictConfig)
        return execute([merged])

    os.environ["HYDRA_FULL_ERROR"] = "1"  # raise errors instead of printing them
    argv = sys.argv
    with tempfile.TemporaryDirectory() as scratch:  # Hydra writes a multirun.yaml into the folder of a sweep
        sys.argv = ["evenbench", f"hydra.sweep.dir={scratch!r}", *arguments]
        try:
            hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name="config")(task)()
        except SystemExit as stop:
            return WRONG if stop.code else OK
        finally:
            sys.argv = argv
    return OK


def prepare_hydra(folders: Sequence[Path]) -> None:
    """Make our plugins and the resolvers of `conf/` known to Hydra; `folders` hold the framework files."""
    plugins = str(PACKAGE)
    if plugins not in sys.path:
        sys.path.append(plugins)  # contains `hydra_plugins`; last, so that it hides nothing
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # the tracking thread reports an outage once

    def installed(*names: str) -> str:
        """Those of the named frameworks that are installed, as choices of a sweep."""
        return ",".join(name for name in names if is_installed(name, folders))

    def mode_of(search: object) -> str | None:
        """Hydra's mode: a search is a sweep even without `-m`."""
        return None if search is None else "MULTIRUN"

    OmegaConf.register_new_resolver("installed", installed, replace=True)
    OmegaConf.register_new_resolver("mode_of", mode_of, replace=True)
