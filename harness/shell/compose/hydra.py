"""The Hydra task: read the command line, let Hydra compose, run what came out, show it.

Hydra calls back into here, once for a single run or through the launcher for a sweep, so what the callbacks
share (the session and the mistakes found before Hydra started) is kept in this module for the length of the
command.
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
from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import harness
from harness.core.config.run_config import RunConfig, fit
from harness.core.data import dataset
from harness.core.validation import ConfigError, Mistake
from harness.shell.compose import overrides
from harness.shell.compose.origins import Origins, locate
from harness.shell.compose.run_config import run_config
from harness.shell.compose.suggestions import with_alternatives
from harness.shell.engines.protocol import Engine, JobShouldContinue
from harness.shell.environment.frameworks import conf_folder
from harness.shell.environment.versions import installed
from harness.shell.reports.leaderboard import print_leaderboard
from harness.shell.reports.progress import reporter
from harness.shell.runs.inputs import DatasetCache
from harness.shell.runs.interning import Interner
from harness.shell.session.session import Session

PACKAGE = Path(harness.__file__).resolve().parent
OK, FAILED, WRONG = 0, 1, 2


CarryOut = Callable[[list[RunConfig], Engine | None, JobShouldContinue | None], Sequence[object]]
"""What is done with the runs that Hydra composed; what it returns for each is given back to Hydra."""


@dataclass
class _Command:
    """The command that is being carried out."""

    carry_out: CarryOut
    mistakes: list[Mistake]
    refused: bool = False
    session: Session | None = None  # of a command that does runs, and so may search
    searching: bool = False  # a combination that can't be is then a failed trial
    options: Sequence[str] = ()  # those of Hydra
    groups: overrides.Groups = field(default_factory=dict)


_commands: list[_Command] = []


def main(arguments: Sequence[str]) -> int:
    """Run or sweep as the arguments (in Hydra's syntax) say; returns the exit status."""
    with Session(reporter()) as session:
        status = compose(arguments, session.execute, session)
    if session.report is not None:
        session.report()
    elif session.outcomes:
        print_leaderboard(session.outcomes)
    if session.outcomes:
        return FAILED if any(outcome.failed for outcome in session.outcomes) else OK
    return status


def collect(arguments: Sequence[str]) -> list[RunConfig]:
    """The runs that the arguments of a sweep describe, checked; nothing is run. Raises ConfigError."""
    found: list[RunConfig] = []

    def take(
        configs: list[RunConfig], engine: Engine | None, judge: JobShouldContinue | None
    ) -> Sequence[object]:
        found.extend(configs)
        return configs

    status = compose(["--multirun", *arguments], take)
    if status:
        raise SystemExit(status)
    return found


def compose(arguments: Sequence[str], carry_out: CarryOut, session: Session | None = None) -> int:
    """Have Hydra compose what the arguments say, and carry it out; returns Hydra's exit status.

    `session` is that of `carry_out` where a sweep may be a search.
    """
    options, asked, others = overrides.split(arguments)
    folders = [conf_folder()]
    if options.config_dir:
        folders.append(Path(options.config_dir))
        overrides.check_folder(folders[1], folders[0])
    if options.shell_completion:
        _prepare_hydra(folders)
        return _run_hydra(asked + others)
    groups = overrides.find_groups(folders)
    kept, mistakes = overrides.check(asked, groups)
    if mistakes and (options.cfg or options.info):
        raise ConfigError(mistakes)
    _prepare_hydra(folders)
    command = _Command(carry_out, mistakes, session=session, options=others, groups=groups)
    _commands.append(command)
    try:
        status = _run_hydra(kept + others)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise ConfigError([*mistakes, *overrides.refusal(error, folders[1:])]) from error
    finally:
        _commands.pop()
    if mistakes and not command.refused:  # Hydra ended before it called us
        raise ConfigError(mistakes)
    return status


def execute(
    composed: Iterable[DictConfig], engine: Engine | None = None, judge: JobShouldContinue | None = None
) -> Sequence[Any]:
    """Check composed configurations and carry them out; a wrong request ends the command.

    `engine` and `judge` are those of the launcher, see `harness.shell.engines.protocol`. Returns what the
    command has for each: an `Outcome` where runs are done.
    """
    command = _commands[-1]
    configs: list[RunConfig] = []
    origins: list[Origins] = []
    mistakes, shelf, shared = list(command.mistakes), DatasetCache(), Interner()
    for config in composed:
        origin = Origins.of(config)
        origins.append(Origins(origin.places, shared.parts(origin.raw)))
        try:
            run = run_config(config, origins[-1], shelf)
            fit(run.model, run.train.loss, dataset.sample(run.data))  # before any data are loaded
            configs.append(shared.config(run))
        except ConfigError as error:
            mistakes.extend(locate(error.mistakes, origins[-1:]))
    with _refusing(command, origins):
        if mistakes:
            raise ConfigError(mistakes)
        return command.carry_out(configs, engine, judge)


def search(composed: DictConfig, arguments: Sequence[str], loader: ConfigLoader, launcher: object) -> None:
    """Carry out a sweep that is a search; raises ConfigError.

    `composed` is what Hydra composed for the sweep, `arguments` are its overrides.
    """
    from harness.shell.search.plan import Composer, plan_search  # Optuna: for searches alone
    from harness.shell.search.sweep import Launcher, SearchSweep

    command = _commands[-1]
    if command.session is None:
        problem = "searches among runs, which this command does not do"
        raise ConfigError([*command.mistakes, Mistake("search", problem)])
    if not isinstance(launcher, Launcher):
        problem = f"a search can't use {type(launcher).__name__}"
        raise ConfigError([*command.mistakes, Mistake("hydra/launcher", problem, "evenbench, ray, slurm")])
    composer = Composer(composed, loader, command.groups)
    try:
        request = plan_search(composed, arguments, composer, command.mistakes, launcher.engine)
        command.searching = True
        SearchSweep(request, composer, launcher, command.session, command.options).run()
    except ConfigError as error:
        raise ConfigError(with_alternatives(error.mistakes)) from error


@contextmanager
def _refusing(command: _Command, origins: Sequence[Origins]) -> Iterator[None]:
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
    """Let Hydra compose and call back; what it refuses itself (a bad defaults list, say) it raises."""

    def task(config: DictConfig) -> object:
        # the task's own argument lacks the `hydra` node, which says where each value came from
        full = HydraConfig.instance().cfg
        merged = OmegaConf.merge(full, config) if full is not None else config
        assert isinstance(merged, DictConfig)
        return execute([merged])

    os.environ["HYDRA_FULL_ERROR"] = "1"  # raise what is wrong instead of printing it
    before = sys.argv
    with tempfile.TemporaryDirectory() as scratch:  # Hydra leaves a multirun.yaml in the folder of a sweep
        sys.argv = ["evenbench", f"hydra.sweep.dir={scratch!r}", *arguments]
        try:
            hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name="config")(task)()
        except SystemExit as stop:
            return WRONG if stop.code else OK
        finally:
            sys.argv = before
    return OK


def installed_frameworks() -> list[str]:
    """The project's own frameworks whose packages are in this environment, by name."""
    folder = conf_folder()
    names = sorted(path.stem for path in (folder / "framework").glob("*.yaml"))
    return [name for name in names if _is_installed(name, [folder])]


def _prepare_hydra(folders: Sequence[Path]) -> None:
    plugins = str(PACKAGE)
    if plugins not in sys.path:
        sys.path.append(plugins)  # holds `hydra_plugins`; last, so that it hides nothing
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # a server that is away is reported once, by us

    def present(*names: str) -> str:
        """Those of the named frameworks that are installed, as choices of a sweep."""
        return ",".join(name for name in names if _is_installed(name, folders))

    def mode(search: object) -> str | None:
        """Hydra's mode: a search is a sweep without `-m` too."""
        return None if search is None else "MULTIRUN"

    OmegaConf.register_new_resolver("installed", present, replace=True)
    OmegaConf.register_new_resolver("mode_of", mode, replace=True)


def _is_installed(framework: str, folders: Sequence[Path]) -> bool:
    files = [folder / "framework" / f"{framework}.yaml" for folder in folders]
    found = [OmegaConf.load(path) for path in files if path.exists()]
    return bool(found) and installed(tuple(found[0].distributions))
