"""A sweep with two workers is killed and run again: a few of the kills of tests/bench/kills.py."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from harness.shell.runs.inputs import DatasetCache
from tests.bench.kills import VICTIMS, Sweep, kill_once, new_workspace
from tests.support.compose import composing, config_of
from tests.support.matrix import matrix


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("victim", matrix(VICTIMS, lambda victim: victim == "copy"))
def test_a_killed_sweep_is_completed_by_the_same_command(victim: str, template: Path) -> None:
    """Catches: a run that is lost or done twice; an MLflow run left running; a metric that is stored twice or
    not at all; a partial file that stops the next command. Two runs are in progress at the kill."""
    with new_workspace(template) as workspace:
        kill = kill_once(workspace, Sweep("faulty", 10), victim, random.Random(VICTIMS.index(victim)))
    assert kill.wrong == (), kill


def test_a_partial_data_file_is_deleted(tmp_path: Path) -> None:
    """Catches: a partial data file, left by a kill, that is never deleted."""
    cache = DatasetCache()
    with composing():
        _, name = cache.get(config_of("data=iris").data, tmp_path)
    path = tmp_path / name
    path.parent.mkdir()
    partial = path.with_name(f".{path.name}.0a1b2c3d.tmp")
    partial.write_bytes(b"half")
    cache.write(tmp_path)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
