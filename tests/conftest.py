"""What every test can rely on: one thread a process, quiet libraries, and an empty folder to work in.

The environment is set here, at import, because the numerical libraries read it when they load; child
processes that tests start inherit it.
"""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

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
if "PYTEST_XDIST_WORKER" not in os.environ:  # workers have that of the process that started them
    os.environ["EVENBENCH_CACHE"] = tempfile.mkdtemp(prefix="evenbench-cache-")
    atexit.register(shutil.rmtree, os.environ["EVENBENCH_CACHE"], ignore_errors=True)

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # so a shell starts what goes on in its background, and whoever tests what Ctrl-C does would wait for ever
    signal.signal(signal.SIGINT, signal.default_int_handler)

BENCHMARKS = Path(__file__).parent / "bench"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test in tests/bench as `bench`, before pytest selects tests by their marks."""
    for item in items:
        if item.path.is_relative_to(BENCHMARKS):
            item.add_marker(pytest.mark.bench)


@pytest.fixture(autouse=True)
def no_logging_left() -> Iterator[None]:
    """Takes away what `--info` in this process logs to: the output of a test that is over."""
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
    """An empty folder that is the working folder during the test, so that `results/` is made there."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for the test and what it starts, which otherwise have that of the whole session."""
    folder = tmp_path / "own cache"
    monkeypatch.setenv("EVENBENCH_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated, empty database: migrating costs seconds, copying 0.03 s."""
    from mlflow.tracking import MlflowClient

    path = tmp_path_factory.mktemp("template") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments(max_results=1)
    return path


@pytest.fixture
def results(tmp_path: Path, template: Path) -> Path:
    """A results folder, in a path with a space, whose store is migrated already."""
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
    """`lab("torch", "float64")`: a child process with that adapter in it, which lives as long as the session.

    Skips the test if the framework is not installed.
    """
    from tests.support.adapter_process import (
        AdapterProcesses,
        frameworks,
    )  # not above: NumPy must not load before the threads are set

    processes = AdapterProcesses(tmp_path_factory.mktemp("lab"))

    def start(framework: str, precision: str) -> AdapterProcess:
        missing = frameworks()[framework].missing()
        if missing:
            pytest.skip(f"{framework} needs {missing}, which is not installed")
        return processes(framework, precision)

    yield start
    processes.close()
