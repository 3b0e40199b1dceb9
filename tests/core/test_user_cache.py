"""The user's cache: that it holds what it should, and that nothing depends on it."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from harness.core.data import dataset
from harness.core.data.dataset import DataConfig
from harness.core.machine.matmul_limits import read_limit, store_limit
from harness.core.storage import locks, user_cache
from harness.shell.tracking import store
from harness.shell.workers import matmul_limits
from tests.shell.test_doctor import CPU, LIMIT
from tests.support.compose import composing, config_of
from tests.support.paths import ROOT

PACKAGED = ("digits", "breast_cancer", "wine", "iris", "diabetes", "mnist_5k")


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"EVENBENCH_CACHE": "/own", "XDG_CACHE_HOME": "/xdg"}, "/own"),
        ({"XDG_CACHE_HOME": "/xdg"}, "/xdg/evenbench"),
        ({"XDG_CACHE_HOME": "xdg"}, "/home/me/.cache/evenbench"),
        ({}, "/home/me/.cache/evenbench"),
    ],
)
def test_where_it_is(variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a cache in the working folder, or in another place than the variables say."""
    for name in ("EVENBENCH_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/home/me", **variables}.items():
        monkeypatch.setenv(name, value)
    assert user_cache.folder() == Path(expected)


def full(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("a file where the folder should be")


def cut_off(path: Path) -> None:
    for file in path.rglob("*.*"):
        file.write_bytes(file.read_bytes()[:100])


@pytest.mark.parametrize("name", PACKAGED)
@pytest.mark.parametrize("spoil", [full, cut_off, None])
def test_data_of_packages_are_the_same_with_and_without_it(
    own_cache: Path, name: str, spoil: Callable[[Path], None] | None
) -> None:
    """Catches: rows, dtypes or names that differ in the file; an unreadable file that is never replaced; a
    read-only cache that stops a run."""
    if spoil is full:
        full(own_cache)
    fresh = dataset.read(DataConfig(name))
    if spoil is cut_off:
        cut_off(own_cache)
    again = dataset.read(DataConfig(name))
    assert list(own_cache.rglob("*.tmp")) == []
    assert len(list(own_cache.rglob("*.npz"))) == (spoil is not full)
    for one, other in ((fresh.x, again.x), (fresh.y, again.y)):
        assert one.dtype == other.dtype and np.array_equal(one, other)
    assert fresh.task == again.task and all(type(each) is str for each in again.task.names)


def test_the_second_time_the_package_is_not_imported(own_cache: Path) -> None:
    """Catches: a second of imports in every command on a new results folder."""
    code = (
        "import sys; from harness.core.data.dataset import *; "
        "load(DataConfig('iris')); print('sklearn' in sys.modules)"
    )
    command = [sys.executable, "-c", code]
    outputs = [subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True).stdout for _ in range(2)]
    assert outputs == ["True\n", "False\n"]


def test_a_new_results_folder_has_the_limits_of_others(own_cache: Path, tmp_path: Path) -> None:
    """Catches: a limit that every results folder measures again; runs of one folder that are compared with
    two limits; a disturbed limit that spreads, or is preferred to a folder's own."""
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    key = (CPU, LIMIT.precision, LIMIT.threads)
    assert matmul_limits.stored_limit(first, *key) is None
    store_limit(own_cache, CPU, LIMIT)
    assert matmul_limits.stored_limit(first, *key) == LIMIT == read_limit(first, *key)
    store_limit(own_cache, CPU, replace(LIMIT, gflops=LIMIT.gflops + 1))
    assert matmul_limits.stored_limit(first, *key) == LIMIT
    disturbed = replace(LIMIT, gflops=LIMIT.gflops - 1, disturbed=True)
    store_limit(second, CPU, disturbed)
    limit = matmul_limits.stored_limit(second, *key)
    assert limit is not None and limit.gflops == LIMIT.gflops + 1 and not limit.disturbed
    (own_cache / "machine" / f"{CPU.id}.json").unlink()
    store_limit(own_cache, CPU, disturbed)
    assert matmul_limits.stored_limit(third, *key) is None


def test_a_command_that_waits_for_a_measurement_uses_its_result(
    own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: two commands that measure at the same time; a command that waits for another's measurement
    although its own limit is stored."""
    messages, waited = list[str](), list[Path]()
    with composing():
        config = config_of("data=iris")
    (first,) = matmul_limits.measuring_frameworks([config.framework])

    @contextlib.contextmanager
    def after_another(path: Path) -> Iterator[None]:
        waited.append(path)
        store_limit(own_cache, matmul_limits.describe_device(first, config.device), LIMIT)
        yield

    monkeypatch.setattr(locks, "exclusive_lock", after_another)
    for name in ("first", "second"):
        assert matmul_limits.MatmulLimits(messages.append).get(tmp_path / name, config, {}) == LIMIT.gflops
    assert waited == [own_cache / "limit.lock"] and messages == []


@pytest.mark.parametrize("spoil", [full, None])
def test_the_second_store_is_a_copy_of_the_first(
    own_cache: Path, tmp_path: Path, spoil: Callable[[Path], None] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: migrations for each new results folder; a copy with the first store's experiments or runs in
    it, or one that MLflow considers outdated; a read-only cache that stops a command."""
    from mlflow.store.db import utils

    initialised = []
    original = utils._initialize_tables
    monkeypatch.setattr(
        utils, "_initialize_tables", lambda engine: (initialised.append(engine), original(engine))
    )
    if spoil is not None:
        spoil(own_cache)
    stores = []
    for name in ("first", "second"):
        stores.append(store.open_store(tmp_path / name))
        stores[-1].client.create_run(stores[-1].experiment_id)
    assert len(initialised) == (2 if spoil else 1)
    assert stores[0].id != stores[1].id
    for opened in stores:
        assert len(opened.client.search_runs([opened.experiment_id])) == 1
    with sqlite3.connect(tmp_path / "second/mlflow.db") as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert list((tmp_path / "second").glob(".*.tmp*")) == []
