"""Hydra's basic sweeper, which composes each run once instead of twice, and searches where that is asked for.

Hydra's own composes every run to see whether that can be done, throws the result away and hands the overrides
to the launcher, which composes them again. Our launcher composes and checks all runs before the first one
starts, so nothing is lost: 75 ms a run are gained. A configuration with a section `search` makes the sweep a
search, whose trials go to the same launcher.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper


class EvenbenchSweeper(BasicSweeper):
    """All combinations of the given values, composed by the launcher, or a search."""

    def sweep(self, arguments: list[str]) -> Any:
        """Execute the sweep."""
        assert self.config is not None and self.hydra_context is not None and self.launcher is not None
        if self.config.get("search") is None:
            return super().sweep(arguments)
        # Hydra imports its plugins for every command, and only searches need Optuna
        from harness.shell.search.hydra import search

        return search(self.config, arguments, self.hydra_context.config_loader, self.launcher)

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Do nothing: the launcher checks the runs."""
