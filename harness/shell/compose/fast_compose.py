"""Composing the runs of a sweep, of which most differ in numbers alone.

Hydra reads and merges all files of a configuration anew for each run, which takes several times as long as
a short training. Runs whose overrides are the same but for the numbers in them have the same files: the first
of them is composed by Hydra, the others have their own numbers put into it, as Hydra would.
"""

from __future__ import annotations

from collections.abc import Sequence

from hydra._internal.config_loader_impl import get_overrides_dirname
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from omegaconf import DictConfig, OmegaConf


class TemplateComposer:
    """What Hydra composed for a command (`sweep`, with its `hydra` node), and for its runs so far."""

    def __init__(self, loader: ConfigLoader, sweep: DictConfig) -> None:
        self._loader, self._sweep = loader, sweep
        self._parser = OverridesParser.create()
        self._groups = frozenset(map(str, sweep.hydra.runtime.choices))
        self._composed: dict[tuple[str, ...], DictConfig] = {}

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        """The configuration of a run, with its `hydra` node; raises what Hydra raises.

        It is good until the next one is asked for, which may be made of it.
        """
        parsed = self._parser.parse_overrides(list(overrides))
        numbers = [override for override in parsed if self._is_number(override)]
        others = [override for override in parsed if not self._is_number(override)]
        if any(_overlap(number, other) for number in numbers for other in others):
            return self._loader.load_sweep_config(self._sweep, list(overrides))
        frame = tuple(str(o.key_or_group if o in numbers else o.input_line) for o in parsed)
        if frame not in self._composed:
            self._composed[frame] = self._loader.load_sweep_config(self._sweep, list(overrides))
            return self._composed[frame]
        config = self._composed[frame]
        for override in numbers:
            key, forced = override.key_or_group, override.is_force_add()
            OmegaConf.update(config, key, override.value(), merge=True, force_add=forced)
        task = [override for override in parsed if not override.is_hydra_override()]
        config.hydra.overrides.task = [override.input_line for override in task]
        named = config.hydra.job.config.override_dirname
        config.hydra.job.override_dirname = get_overrides_dirname(
            overrides=task, kv_sep=named.kv_sep, item_sep=named.item_sep, exclude_keys=named.exclude_keys
        )
        return config

    def _is_number(self, override: Override) -> bool:
        """Whether it puts a number in the place of a value; groups are what a name says."""
        return (
            override.type in (OverrideType.CHANGE, OverrideType.FORCE_ADD)
            and override.package is None
            and override.key_or_group not in self._groups
            and "/" not in override.key_or_group
            and not override.is_hydra_override()
            and isinstance(override.value(), int | float)
        )


def _overlap(number: Override, other: Override) -> bool:
    """Whether the order of the two matters: one sets the other's value, or what it is a part of."""
    one, two = f"{number.key_or_group}.", f"{other.key_or_group}."
    return one.startswith(two) or two.startswith(one)
