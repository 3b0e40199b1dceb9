"""Fixtures and the environment of all tests: one thread per process, quiet libraries, a cache of their own.

The environment is set at import, because numerical libraries read it when they load. Child processes that
tests start inherit it.
"""

from __future__ import annotations

import atexit
import functools
import logging
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.paths import ROOT

if TYPE_CHECKING:
    from harness.shell.tracking.store import Store
    from tests.support.adapter_process import AdapterProcess, Adapters

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"):
    os.environ[_name] = "1"
os.environ["TF_NUM_INTRAOP_THREADS"] = "1"
os.environ["TF_NUM_INTEROP_THREADS"] = "1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
if "PYTEST_XDIST_WORKER" not in os.environ:  # xdist workers inherit it from the process that started them
    os.environ["EVENBENCH_CACHE"] = tempfile.mkdtemp(prefix="evenbench-cache-")
    atexit.register(shutil.rmtree, os.environ["EVENBENCH_CACHE"], ignore_errors=True)

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # a shell ignores SIGINT for its background jobs, and tests of Ctrl-C would wait forever
    signal.signal(signal.SIGINT, signal.default_int_handler)

BENCHMARKS = Path(__file__).parent / "bench"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test in tests/bench as `bench`, before pytest selects tests by their marks."""
    for item in items:
        if item.path.is_relative_to(BENCHMARKS):
            item.add_marker(pytest.mark.bench)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Run all files that start adapter processes in one of two xdist workers, so that each framework starts
    once.

    More than two workers share the files as usual: a start costs less than an idle worker.
    """
    if config.option.numprocesses != 2 or config.option.dist != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file: str = super()._split_scope(nodeid)
            return "adapters" if _starts_adapters(file) else file

    return Scheduling(config, log)


@functools.cache
def _starts_adapters(file: str) -> bool:
    text = (ROOT / file).read_text("utf-8")
    return "AdapterProcess" in text or "adapters: Adapters" in text


@pytest.fixture(autouse=True)
def remove_log_handlers() -> Iterator[None]:
    """Remove the log handlers that `--info` added in this process: they write to the output of a finished
    test."""
    yield
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if type(handler) is logging.StreamHandler]:
        root.removeHandler(handler)
    root.setLevel(logging.WARNING)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return ROOT


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, the working folder during the test, so that commands create `results/` in it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for the test and its child processes; otherwise the session shares one cache."""
    folder = tmp_path / "own cache"
    monkeypatch.setenv("EVENBENCH_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated, empty database. Migrating takes seconds, copying 0.03 s."""
    from mlflow.tracking import MlflowClient

    path = tmp_path_factory.mktemp("template") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments(max_results=1)
    return path


@pytest.fixture
def results(tmp_path: Path, template: Path) -> Path:
    """A results folder with a migrated store, in a path with a space."""
    folder = tmp_path / "my results"
    folder.mkdir()
    shutil.copyfile(template, folder / "mlflow.db")
    return folder


@pytest.fixture
def store(results: Path) -> Store:
    """The store in `results`."""
    from harness.shell.tracking.store import open_store

    return open_store(results)


@pytest.fixture(scope="session")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Adapters]:
    """`adapters("torch", "float64")`: a child process with that adapter, which lives as long as the session.

    Skips the test if the framework is not installed.
    """
    # imported here because NumPy must not load before the number of threads is set
    from tests.support.adapter_process import AdapterProcesses, frameworks

    processes = AdapterProcesses(tmp_path_factory.mktemp("adapters"))

    def start(framework: str, precision: str) -> AdapterProcess:
        missing = frameworks()[framework].missing()
        if missing:
            pytest.skip(f"{framework} needs {missing}, which is not installed")
        return processes(framework, precision)

    yield start
    processes.close()
