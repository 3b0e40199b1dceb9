"""A sweep with two workers that is killed and asked for again: a few of the kills of tests/bench/kills.py."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from harness.shell.runs.inputs import DatasetCache
from tests.bench.kills import VICTIMS, Sweep, kill_once, new_workspace
from tests.support.compose import composing, config_of


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("victim", VICTIMS)
def test_a_sweep_that_is_killed_is_whole_after_it_is_asked_for_again(victim: str, template: Path) -> None:
    """Catches: a run lost or done twice, an MLflow run left running, a metric twice or not at all, half a
    file that stops the next command; with two runs in progress at the time."""
    with new_workspace(template) as workspace:
        kill = kill_once(workspace, Sweep("faulty", 10), victim, random.Random(VICTIMS.index(victim)))
    assert kill.wrong == (), kill


def test_half_a_data_file_goes_when_the_data_are_made_again(tmp_path: Path) -> None:
    """Catches: what a kill left of a data file, kept for ever."""
    shelf = DatasetCache()
    with composing():
        _, name = shelf.get(config_of("data=iris").data, tmp_path)
    path = tmp_path / name
    path.parent.mkdir()
    half = path.with_name(f".{path.name}.0a1b2c3d.tmp")
    half.write_bytes(b"half")
    shelf.write(tmp_path)
    assert [found.name for found in path.parent.iterdir()] == [path.name]
