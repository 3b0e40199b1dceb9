"""Compose the runs of a sweep faster than Hydra, since most of them differ only in numbers.

Hydra reads and merges all files of a configuration again for each run, which takes several times as long as a
short training. Runs whose overrides differ only in numbers have the same files: Hydra composes the first,
which serves as a template, and the others get their numbers put into it, as Hydra would do it.
"""

from __future__ import annotations

from collections.abc import Sequence

from hydra._internal.config_loader_impl import get_overrides_dirname
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from omegaconf import DictConfig, OmegaConf


class TemplateComposer:
    """Composes runs of a command from templates; `sweep` is what Hydra composed for it, with its `hydra`
    node."""

    def __init__(self, loader: ConfigLoader, sweep: DictConfig) -> None:
        self._loader, self._sweep = loader, sweep
        self._parser = OverridesParser.create()
        self._groups = frozenset(map(str, sweep.hydra.runtime.choices))
        self._composed: dict[tuple[str, ...], DictConfig] = {}

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        """The configuration of a run, with its `hydra` node; raises what Hydra raises.

        Valid until the next call, which may modify and return the same object.
        """
        parsed = self._parser.parse_overrides(list(overrides))
        numbers = [override for override in parsed if self._is_number(override)]
        others = [override for override in parsed if not self._is_number(override)]
        if any(_overlap(number, other) for number in numbers for other in others):
            return self._loader.load_sweep_config(self._sweep, list(overrides))
        template = tuple(str(o.key_or_group if o in numbers else o.input_line) for o in parsed)
        if template not in self._composed:
            self._composed[template] = self._loader.load_sweep_config(self._sweep, list(overrides))
            return self._composed[template]
        config = self._composed[template]
        for override in numbers:
            key, forced = override.key_or_group, override.is_force_add()
            OmegaConf.update(config, key, override.value(), merge=True, force_add=forced)
        task = [override for override in parsed if not override.is_hydra_override()]
        config.hydra.overrides.task = [override.input_line for override in task]
        naming = config.hydra.job.config.override_dirname
        config.hydra.job.override_dirname = get_overrides_dirname(
            overrides=task, kv_sep=naming.kv_sep, item_sep=naming.item_sep, exclude_keys=naming.exclude_keys
        )
        return config

    def _is_number(self, override: Override) -> bool:
        """Whether it sets a plain key to a number; groups are chosen by name."""
        return (
            override.type in (OverrideType.CHANGE, OverrideType.FORCE_ADD)
            and override.package is None
            and override.key_or_group not in self._groups
            and "/" not in override.key_or_group
            and not override.is_hydra_override()
            and isinstance(override.value(), int | float)
        )


def _overlap(number: Override, other: Override) -> bool:
    """Whether the order of the two matters: one sets the other's value, or a part of it."""
    one, two = f"{number.key_or_group}.", f"{other.key_or_group}."
    return one.startswith(two) or two.startswith(one)
