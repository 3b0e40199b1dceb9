"""A sweep that is a search, as Hydra's sweeper starts it."""

from __future__ import annotations

from collections.abc import Sequence

from hydra.core.config_loader import ConfigLoader
from omegaconf import DictConfig

from harness.core.validation import ConfigError, Mistake
from harness.shell.compose.hydra import current_command
from harness.shell.compose.suggestions import with_alternatives
from harness.shell.search.plan import plan_search
from harness.shell.search.sweep import Launcher, SearchSweep
from harness.shell.search.trial_composer import TrialComposer


def search(composed: DictConfig, arguments: Sequence[str], loader: ConfigLoader, launcher: object) -> None:
    """Plan and run the search; raises ConfigError.

    `composed` is what Hydra composed for the sweep, `arguments` are its overrides.
    """
    command = current_command()
    if command.session is None:
        problem = "searches among runs, and this command does not train"
        raise ConfigError([*command.mistakes, Mistake("search", problem)])
    if not isinstance(launcher, Launcher):
        problem = f"a search can't use {type(launcher).__name__}"
        raise ConfigError([*command.mistakes, Mistake("hydra/launcher", problem, "evenbench, ray, slurm")])
    composer = TrialComposer(composed, loader, command.groups)
    try:
        plan = plan_search(composed, arguments, composer, command.mistakes, launcher.engine)
        command.searching = True
        SearchSweep(plan, composer, launcher, command.session, command.options).run()
    except ConfigError as error:
        raise ConfigError(with_alternatives(error.mistakes)) from error
