"""The environment part of a result: energy, device memory, packages, revisions, and the phases of a run.

The processor's energy counters are files in a folder that replaces /sys; the revisions are those of a
repository created by the test.
"""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.core.adapter import Adapter
from harness.core.config.run_config import RunConfig
from harness.core.machine import energy, host
from harness.core.validation import to_plain
from harness.shell.environment import git_revisions
from harness.shell.reports import phases
from harness.shell.runs import prepare
from harness.shell.runs.inputs import RunInputs
from harness.shell.runs.records import Outcome
from harness.shell.tracking.conversion import result_tags
from harness.worker import environment as worker_environment
from tests.support import adapter_cases
from tests.support.adapter_process import Adapters
from tests.support.compose import composing, config_of

BOUND_UJ = 262_143_328_850


@pytest.fixture(scope="module")
def base() -> Iterator[RunConfig]:
    with composing():
        yield config_of("data=iris", "framework=torch", "train.epochs=2", "certify=off")


def counter(system: Path, folder: str, name: str, energy_uj: int | None) -> Path:
    """Create a counter of the power capping framework, unreadable for None; returns its folder."""
    path = system / "class/powercap" / folder
    path.mkdir(parents=True, exist_ok=True)
    (path / "name").write_text(f"{name}\n")
    (path / "max_energy_range_uj").write_text(f"{BOUND_UJ}\n")
    if energy_uj is None:
        (path / "energy_uj").mkdir()  # reading it fails, for root as well
    else:
        (path / "energy_uj").write_text(f"{energy_uj}\n")
    return path


def test_energy_is_the_sum_over_packages(tmp_path: Path) -> None:
    """Catches: cores counted in addition to their package; the board (psys) or a second interface (mmio)
    counted too; one package of two; microjoules instead of joules."""
    first = counter(tmp_path, "intel-rapl:0", "package-0", 1_000_000)
    second = counter(tmp_path, "intel-rapl:1", "package-1", 5_000_000)
    others = [
        counter(tmp_path, "intel-rapl:0:0", "core", 7),
        counter(tmp_path, "intel-rapl:2", "psys", 7),
        counter(tmp_path, "intel-rapl-mmio:0", "package-0", 7),
    ]
    meter = energy.EnergyMeter(energy.rapl(tmp_path))
    assert meter.describe() == {"source": "RAPL", "of": "package-0, package-1"}
    meter.begin()
    (first / "energy_uj").write_text("2500000\n")
    (second / "energy_uj").write_text("5250000\n")
    for other in others:
        (other / "energy_uj").write_text("900000000\n")
    assert meter.end() == {"energy_j": 1.75}


def test_a_counter_that_wraps_around(tmp_path: Path) -> None:
    """Catches: a negative energy; a counter of 32 bits wraps around every ten minutes."""
    path = counter(tmp_path, "intel-rapl:0", "package-0", BOUND_UJ - 1_000_000)
    meter = energy.EnergyMeter(energy.rapl(tmp_path))
    meter.begin()
    (path / "energy_uj").write_text("500000\n")
    assert meter.end() == {"energy_j": 1.5}


def test_no_energy_without_a_reading(tmp_path: Path) -> None:
    """Catches: 0 J, or the energy of one package of two, if a counter is missing, unreadable, or vanishes."""
    for system in (tmp_path / "none", tmp_path / "closed"):
        if system.name == "closed":
            counter(system, "intel-rapl:0", "package-0", 1)
            counter(system, "intel-rapl:1", "package-1", None)
        meter = energy.EnergyMeter(energy.rapl(system))
        meter.begin()
        assert meter.end() == {} and meter.describe() == {"source": "n/a"}
    path = counter(tmp_path / "open", "intel-rapl:0", "package-0", 1)
    meter = energy.EnergyMeter(energy.rapl(tmp_path / "open"))
    meter.begin()
    (path / "energy_uj").unlink()
    assert meter.end() == {}


def measured(adapter: Adapter, folder: str, system: str) -> dict[str, Any]:
    """Executed in an adapter process: the result of a run on a machine with these files."""
    host.SYS = Path(system)
    return adapter_cases.do_run(adapter, folder)


def test_a_result_describes_its_energy_and_environment(
    base: RunConfig, adapters: Adapters, tmp_path: Path
) -> None:
    """Catches: an energy without a reading, or without its source; a result without its cores, packages or
    precision, or with them where MLflow cuts them off."""
    results = {}
    for name in ("with", "without"):
        if name == "with":
            counter(tmp_path / name, "intel-rapl:0", "package-0", 1)
        config = replace(base, results_dir=str(tmp_path / name))
        (run,) = prepare.prepare([config], RunInputs())
        run.folder.write_job(to_plain(run.job))
        arguments = {"folder": str(run.folder.path), "system": str(tmp_path / name)}
        results[name] = adapters("torch", "float32").call(
            "tests.worker.test_environment:measured", **arguments
        )
        assert results[name]["status"] == "finished", results[name]["error"]
    measured_run, unmeasured = results["with"], results["without"]
    assert measured_run["metrics"]["energy/train_j"] == 0.0  # the counter did not change
    assert [epoch["energy_j"] for epoch in measured_run["epochs"]] == [0.0, 0.0]
    assert measured_run["environment"]["energy"] == {"source": "RAPL", "of": "package-0"}
    assert unmeasured["environment"]["energy"] == {"source": "n/a"}
    assert "energy/train_j" not in unmeasured["metrics"]
    assert not any("energy_j" in epoch for epoch in unmeasured["epochs"])
    environment = measured_run["environment"]
    assert (environment["execution"], environment["precision"]) == ("eager", "float32")
    assert environment["packages"]["numpy"] == importlib.metadata.version("numpy")
    assert environment["affinity"] == host.cpu_list() and environment["cpu"] == host.cpu_model()
    tags = result_tags(measured_run)
    for key in ("settings.fused", "energy.source", "tf32", "versions.torch", "cpu", "affinity"):
        assert f"environment.{key}" in tags
    assert "memory/device_peak_mb" not in measured_run["metrics"]
    assert "device_peak_of" not in measured_run["timing"]


def test_packages_are_the_installed_dependencies() -> None:
    """Catches: frameworks without the packages that contain their kernels; developer tools, which are
    extras; a package that only another system needs."""
    packages = dict(worker_environment.packages(("keras", "jax")))
    assert {"keras", "jax", "jaxlib", "ml-dtypes", "numpy", "h5py"} <= packages.keys()
    assert packages["jaxlib"] == importlib.metadata.version("jaxlib")
    assert {"pytest", "mlflow", "ruff"}.isdisjoint(packages)


def test_the_revision_of_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a clean commit recorded for changed files; a commit marked dirty by a new results file; a
    command that fails without git or without a commit."""

    def git(*arguments: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(
            ["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout.strip()

    def revision() -> dict[str, Any] | None:
        git_revisions.revision.cache_clear()
        return git_revisions.revision(tmp_path)

    assert revision() is None
    git("init", "-q")
    assert revision() is None
    (tmp_path / "conf.yaml").write_text("a: 1")
    git("add", ".")
    git("commit", "-qm", "first")
    (tmp_path / "new.npz").write_text("")
    assert revision() == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    (tmp_path / "conf.yaml").write_text("a: 2")
    assert revision() == {"commit": git("rev-parse", "HEAD"), "dirty": True}
    monkeypatch.setenv("PATH", str(tmp_path))
    assert revision() is None


def test_the_revision_is_recorded_but_not_part_of_the_run_id(base: RunConfig, tmp_path: Path) -> None:
    """Catches: runs that are repeated after every commit; a job without the revision of its code."""
    config = replace(base, results_dir=str(tmp_path))
    (before,) = prepare.prepare([config], RunInputs())
    git_revisions.revision.cache_clear()
    (after,) = prepare.prepare([config], RunInputs())
    assert before.job.run_id == after.job.run_id
    assert after.job.revisions == git_revisions.revisions()


def outcome(config: RunConfig, status: str = "finished", **timing: float) -> Outcome:
    seconds = {"import_s": 2.0, "data_s": 0.1, "build_s": 0.2, "compile_s": 0.0, "train_s": 1.0}
    return Outcome(config, {"status": status, "timing": seconds | {"evaluate_s": 0.5} | timing}, False)


def test_the_phases_of_a_cold_start(base: RunConfig, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches: a compile time that vanishes because later runs reuse the program; a phase that is missing
    from the sum; failed runs that count; seeds as separate rows."""
    runs = [
        outcome(base, compile_s=4.0),
        outcome(replace(base, seed=1), train_s=3.0),
        outcome(replace(base, seed=2), train_s=1.5),
        outcome(replace(base, seed=3), "failed", train_s=99.0),
    ]
    phases.print_phases(runs, as_json=True)
    (row,) = json.loads(capsys.readouterr().out)
    seconds = {"import": 2.0, "data": 0.1, "build": 0.2, "compile": 4.0, "epochs": 1.5, "evaluation": 0.5}
    assert row["seconds"] == seconds and row["runs"] == 3
    assert row["cold_s"] == pytest.approx(8.3)
    phases.print_phases(runs, as_json=False)
    drawn = capsys.readouterr().out
    assert "8.30" in drawn and "compile" in drawn
