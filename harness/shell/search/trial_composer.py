"""Compose and check the runs of trials, as the launcher will compose them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from harness.core.config.run_config import RunConfig, resolve_model
from harness.core.data import dataset
from harness.core.validation import ConfigError, Mistake
from harness.shell.compose import overrides
from harness.shell.compose.origins import Origins, locate
from harness.shell.compose.overrides import Groups
from harness.shell.compose.run_config import run_config
from harness.shell.engines import slots
from harness.shell.engines.protocol import Engine
from harness.shell.runs.inputs import RunInputs
from harness.shell.runs.prepare import prepare

SECTION = "search"
MARK = f"{SECTION}.mark"  # tells a run which trial it belongs to, see `core.config.run_config.TrialMark`


class TrialComposer:
    """Composes and checks runs from overrides and values of the search's space."""

    def __init__(self, composed: DictConfig, loader: ConfigLoader, groups: Groups) -> None:
        self._composed, self._loader, self._groups = composed, loader, groups
        self._inputs = RunInputs()

    def parse(self, arguments: Sequence[str]) -> list[Override]:
        """Parse overrides with Hydra."""
        return OverridesParser.create(config_loader=self._loader).parse_overrides(list(arguments))

    def run_overrides(
        self, fixed: Sequence[str], values: Mapping[str, str], trial: int, objectives: str
    ) -> list[str]:
        """Return the overrides of a trial's run for the launcher; raises ConfigError."""
        checked, mistakes = overrides.check([f"{key}={text}" for key, text in values.items()], self._groups)
        for override in self.parse(checked):
            if override.is_sweep_override():
                key, value = override.key_or_group, str(override.input_line).partition("=")[2]
                mistakes.append(Mistake(key, f"{value!r} are several values", f"one list: [{value}]"))
        if mistakes:
            raise ConfigError(_with_space_source(mistake, values) for mistake in mistakes)
        return [*fixed, *checked, f"++{MARK}={{trial:{trial},objectives:'{objectives}'}}"]

    def run_config(self, fixed: Sequence[str], values: Mapping[str, str]) -> RunConfig:
        """Compose and check the run with these overrides and values of the space; raises ConfigError."""
        try:
            arguments = self.run_overrides(fixed, values, 0, "")
            composed = self._loader.load_sweep_config(self._composed, arguments)
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(overrides.refusal(error, ())) from error
        origins = Origins.of(composed)
        try:
            config = run_config(composed, origins, self._inputs.datasets)
            resolve_model(config.model, config.train.loss, dataset.sample(config.data))
        except ConfigError as error:
            mistakes = locate(error.mistakes, [origins])
            raise ConfigError(_with_space_source(mistake, values) for mistake in mistakes) from None
        return config

    def first_valid(self, attempts: Iterable[tuple[Sequence[str], Mapping[str, str]]]) -> RunConfig:
        """Return the first valid run of several; raises the ConfigError of the last one if all are
        invalid."""
        last_error = ConfigError(())
        for fixed, values in attempts:
            try:
                return self.run_config(fixed, values)
            except ConfigError as error:
                last_error = error
        raise last_error

    def check_together(self, configs: Sequence[RunConfig], engine: Engine | None) -> None:
        """Raise ConfigError for mistakes that show only with the data, or in all runs together."""
        runs = prepare(configs, self._inputs)
        if engine is None:
            slots.check_concurrency(runs)
        else:
            engine.check(runs)


def _with_space_source(mistake: Mistake, values: Mapping[str, str]) -> Mistake:
    """Replace the source of a mistake by its key in the search's space: no user typed the override."""
    key = mistake.source.removeprefix("the override ").partition("=")[0].lstrip("+")
    if not mistake.source.startswith("the override ") or key not in values:
        return mistake
    return replace(mistake, source=f"{SECTION}.space.{key}, which has {values[key]}")
