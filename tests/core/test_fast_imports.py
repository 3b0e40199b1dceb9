"""Fast imports: which packages they hide, and that everything is restored afterwards."""

from __future__ import annotations

import gc
import importlib
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from harness.core import fast_imports
from tests.support.paths import ROOT


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a package that can be imported, and was not."""
    (tmp_path / "left_out").mkdir()
    (tmp_path / "left_out/__init__.py").write_text("")
    (tmp_path / "left_out/inner.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("left_out", "left_out.inner"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return "left_out"


@pytest.mark.parametrize("ends", ["well", "with an error"])
def test_what_is_left_out_can_be_imported_afterwards(package: str, ends: str) -> None:
    """Catches: a package that stays hidden, also after an error; one that is hidden although it was imported
    before; submodules that are not hidden."""
    before = set(sys.modules)
    try:
        with fast_imports.fast_import(without=(package, "sys")):
            assert not gc.isenabled() and importlib.import_module("sys") is sys
            for name in (package, f"{package}.inner"):
                with pytest.raises(ImportError):
                    importlib.import_module(name)
            if ends != "well":
                raise OSError
    except OSError:
        assert ends != "well"
    assert gc.isenabled() and set(sys.modules) == before
    assert importlib.import_module(f"{package}.inner").__name__ == "left_out.inner"


def test_a_collector_that_was_off_stays_off() -> None:
    """Catches: a collector that is switched on inside timed code."""
    gc.disable()
    try:
        with fast_imports.fast_import():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def output_of(code: str, *arguments: str) -> str:
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


MLFLOW = """
import sys
from pathlib import Path
from harness.shell.tracking.store import open_store
store = open_store(Path(sys.argv[1]))
run = store.client.create_run(store.experiment_id)
store.client.log_metric(run.info.run_id, "loss", 0.5)
runs = store.client.search_runs([store.experiment_id], order_by=["metrics.loss"])
print(runs[0].data.metrics, "pandas" in sys.modules)
import mlflow
mlflow.set_tracking_uri(store.uri)
print(len(mlflow.search_runs([store.experiment_id])), "pandas" in sys.modules)
"""


def test_mlflow_works_without_data_frames_and_then_with_them(tmp_path: Path) -> None:
    """Catches: half a second of pandas in every command; a store that needs it, or a pandas that stays
    hidden."""
    assert output_of(MLFLOW, str(tmp_path)) == "{'loss': 0.5} False\n1 True\n"


KERAS = """
import sys
from harness.core.adapter import AdapterOptions
from harness.worker.serve import import_adapter
adapter = import_adapter("adapters.keras", AdapterOptions("jax", "float32", 1, "cpu"))
left_out = adapter.environment()["imported_without"]
print(left_out, {name for name in left_out.split(", ") if name in sys.modules})
"""


def test_a_worker_has_no_more_of_keras_than_it_needs() -> None:
    """Catches: an import that takes twice as long because of plots and data frames that training never uses;
    hidden packages that are not recorded."""
    if find_spec("jax") is None or find_spec("keras") is None:
        pytest.skip("needs Keras and JAX, which are not installed")
    assert output_of(KERAS) == "matplotlib, pandas, sklearn set()\n"
