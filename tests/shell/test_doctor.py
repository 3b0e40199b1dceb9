"""`evenbench doctor`, the matrix limits, and the share of them that runs reach.

The command and the workers are real; faults are in the faulty framework, in a folder, or in a tree of files
that replaces those of the system.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.core.machine import host as machine
from harness.core.machine import matmul, matmul_limits
from harness.core.machine.matmul_limits import Device, Limit
from harness.core.machine.noise import aa_noise
from harness.core.machine.precision import ON_CPU
from harness.shell.commands import main
from harness.shell.doctor import frameworks as installed
from harness.shell.doctor.findings import FrameworkState
from harness.shell.doctor.report import frameworks_table
from harness.shell.doctor.timings import verdict
from harness.shell.reports.tables import screen
from tests.shell.test_machine_information import NVML, tree
from tests.support.adapter_process import frameworks
from tests.support.paths import FAULTY, ROOT
from tests.support.workspace import FAULTY_SWEEP, Workspace, cleanup, end

CPU = Device("cpu", "EPYC", 2, "x86_64", (), {"torch": "2.13.0"})
LIMIT = Limit("float32", 1, 100.0, 512, "torch", "2026-01-01", 0.5, disturbed=False)


@pytest.fixture
def workspace(tmp_path: Path, template: Path) -> Iterator[Workspace]:
    with cleanup(Workspace(tmp_path, template)) as workspace:
        yield workspace


@dataclass
class Alone:
    """A project whose only framework is the faulty one, to which others can be added."""

    folder: Path
    capture: pytest.CaptureFixture[str]

    @property
    def results(self) -> Path:
        return self.folder / "results"

    def add(self, name: str, **changes: str) -> None:
        """Add a framework like the faulty one, with other values in its file."""
        text = (FAULTY / "conf/framework/faulty.yaml").read_text()
        for key, value in {"name": name, **changes}.items():
            text = re.sub(rf"(?m)^{key}:.*$", f"{key}: {value}", text)
        (self.folder / "framework" / f"{name}.yaml").write_text(text)

    def command(self, *options: str, results: Path | None = None) -> int:
        """Run the command; its exit status."""
        return main.main(["doctor", "--results-dir", str(results or self.results), *options])

    def doctor(self) -> tuple[int, dict[str, Any]]:
        """The exit status and the findings."""
        status = self.command("--json")
        return status, json.loads(self.capture.readouterr().out)


@pytest.fixture
def alone(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Alone:
    (tmp_path / "framework").mkdir()
    monkeypatch.setattr("harness.shell.commands.doctor.conf_folder", lambda: tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(ROOT), str(FAULTY))))
    monkeypatch.setenv("FAULTS", str(tmp_path / "faults.json"))
    alone = Alone(tmp_path, capsys)
    alone.add("faulty")
    return alone


def doctor(workspace: Workspace) -> tuple[int, dict[str, Any], str]:
    """The exit status, the findings and everything that was printed."""
    status, printed = end(workspace.start("doctor", "--json"))
    assert "\n{\n" in printed, printed
    return status, json.loads(printed[printed.index("\n{\n") :]), printed


def broken(findings: dict[str, Any]) -> list[str]:
    return [problem["what"] for problem in findings["problems"] if problem["broken"]]


@pytest.mark.exhaustive
@pytest.mark.usefixtures("own_cache")
def test_a_sound_machine(workspace: Workspace) -> None:
    """Catches: a missing import time, a framework that is left out or reported as broken, a missing limit of
    a precision or a thread count; progress messages in the JSON."""
    status, findings, printed = doctor(workspace)
    assert status == 0 and findings["well"], printed
    states = {state["name"]: state for state in findings["frameworks"]}
    assert set(states) == {*frameworks(), "faulty"}
    for state in states.values():
        assert state["works"] == (None not in state["versions"].values()), state
        if state["works"]:
            assert state["import_s"] > 0 and state["executions"] and state["devices"].keys() >= {"cpu"}
        else:
            assert state["install"].startswith("pip install ")
    limits = {(one["limit"]["precision"], one["limit"]["threads"]): one for one in findings["limits"]}
    threads = {1, machine.usable_cores()}
    assert set(limits) == {(precision, count) for precision in ON_CPU for count in threads}
    assert all(one["new"] and one["limit"]["gflops"] > 0 for one in limits.values())
    noise = findings["noise"]
    assert noise["ratio"]["low"] <= noise["ratio"]["estimate"] <= noise["ratio"]["high"]
    assert noise["verdict"].startswith("quiet:" if noise["quiet"] else "noisy:")
    assert findings["storage"]["writable"] and findings["storage"]["tracked"] == 0


@pytest.mark.exhaustive
def test_limits_are_measured_once_or_again(alone: Alone, own_cache: Path) -> None:
    """Catches: limits that are measured although they are stored, or not measured despite `--again`; a lower
    one that replaces a higher one; a table without them, or without the other findings."""
    assert all(one["new"] for one in alone.doctor()[1]["limits"])
    (path,) = (alone.results / "machine").glob("*.json")
    stored = json.loads(path.read_text())
    for limit in stored["limits"]:
        limit["gflops"] = 1e6 if limit["precision"] == "float32" else 1e-3
        limit["disturbed"] = limit["threads"] > 1
    path.write_text(json.dumps(stored))
    (own_cache / "machine" / path.name).write_text(json.dumps(stored))
    assert alone.command() == 0
    printed, progress = alone.capture.readouterr()
    assert "1,000,000.0" in printed and "threads=1" not in progress
    assert machine.usable_cores() == 1 or "measuring the matrix limit: cpu, float64, threads=" in progress
    for word in (
        "faulty",
        "numpy",
        "processor",
        "Matrix limit",
        "A/A ratio",
        "MLflow store",
        "does not exist yet",
    ):
        assert word in printed
    assert alone.command("--json", "--again") == 0
    for one in json.loads(alone.capture.readouterr().out)["limits"]:
        best = one["limit"]["gflops"]
        assert best == 1e6 if one["limit"]["precision"] == "float32" else best > 0.01


def test_a_framework_that_cannot_be_imported(alone: Alone, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: installed packages taken for a working framework, exit status 0, a problem without its reason,
    a command that stops there."""
    monkeypatch.setenv("AT_IMPORT", "raise")
    status, findings = alone.doctor()
    (problem, nothing) = broken(findings)
    assert status == 1 and "libnumbers.so.7: cannot open shared object file" in problem
    assert nothing == "no framework works"
    (state,) = findings["frameworks"]
    assert not state["works"] and state["versions"]["numpy"]
    assert findings["noise"] is None and findings["limits"] == []


def test_missing_packages_are_listed_with_the_command_that_installs_them(
    alone: Alone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: a missing package reported as broken although another framework works; a worker started for
    it, whose traceback explains less; no advice on what to install, and where."""
    monkeypatch.setenv("AT_MULTIPLY", "raise")  # skips the measurements, which are slow
    alone.add("absent", distributions="[numpy, nonumpy]")
    alone.add("elsewhere", distributions="[nonumpy]", python=sys.executable)
    status, findings = alone.doctor()
    states = {state["name"]: state for state in findings["frameworks"]}
    assert status == 0 and states["faulty"]["works"]
    assert states["absent"]["versions"]["nonumpy"] is None and states["absent"]["versions"]["numpy"]
    assert (states["absent"]["works"], states["absent"]["install"]) == (False, "pip install nonumpy")
    assert states["elsewhere"]["install"] == f"{sys.executable} -m pip install nonumpy"
    alone.add("nowhere", python="/no/python")
    status, findings = alone.doctor()
    (problem,) = broken(findings)
    assert status == 1 and "'/no/python' can't be run as an interpreter" in problem


def test_the_extra_that_installs_missing_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a package by its own name, and so in its newest version, although an extra has the tested one;
    the extra for another framework's cards, which installs gigabytes; extras for cards and for developers
    recommended to every user."""
    required = ["numpy>=2", 'nonumpy==1.*; extra == "old"', 'nonumpy[card]; extra == "gpu-old"']
    required += ['nonumpy; extra == "dev"', 'numpy; extra == "there"']
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: required)
    assert installed.install(["nonumpy"], None) == "pip install 'evenbench[old]'"
    assert installed.install(["nonumpy"], "/a/python") == "/a/python -m pip install nonumpy"
    assert installed.missing_extras(with_card=False) == {"old": "pip install 'evenbench[old]'"}
    assert set(installed.missing_extras(with_card=True)) == {"old", "gpu-old"}


def test_commands_are_printed_whole(capsys: pytest.CaptureFixture[str]) -> None:
    """Catches: `pip install 'evenbench'`, because the table reads the brackets of an extra as markup."""
    command = "pip install 'evenbench[old]'"
    state = FrameworkState("absent", sys.executable, {"nonumpy": None}, command)
    table = frameworks_table("1.0", "3.11", [state], {"old": command})
    screen().print(table)
    printed = capsys.readouterr().out
    assert printed.count(command) == 2, printed


def test_a_failed_measurement_is_a_problem_and_not_a_crash(
    alone: Alone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: an error in a worker that ends the command or blocks it."""
    monkeypatch.setenv("AT_MULTIPLY", "raise")
    status, findings = alone.doctor()
    texts = [problem["what"] + problem["advice"] for problem in findings["problems"]]
    assert status == 0 and findings["limits"] == [] and findings["noise"] is None
    assert any("cpu in float64" in text and "the numbers are wrong" in text for text in texts), texts


def test_results_that_cannot_be_stored(alone: Alone, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a results folder or a database that can't be written, noticed only after the first run; limits
    that are measured and lost."""
    alone.results.mkdir()
    (alone.results / "mlflow.db").write_text("no database")
    with monkeypatch.context() as unmeasured:
        unmeasured.setenv("AT_MULTIPLY", "raise")  # skips the measurements
        (problem,) = broken(alone.doctor()[1])
    assert "can't be read: file is not a database" in problem
    (alone.results / "mlflow.db").unlink()
    (alone.folder / "file").write_text("")
    status = alone.command("--json", results=alone.folder / "file/results")
    findings = json.loads(alone.capture.readouterr().out)
    assert status == 1 and "can't be written to: Not a directory" in broken(findings)[0]
    assert not findings["storage"]["writable"] and findings["limits"] == []


def test_a_limit_is_the_highest_rate_on_a_disturbed_machine() -> None:
    """Catches: a mean instead of a maximum, operations counted as n^3 or without their unit, sizes skipped
    because the first one was disturbed, a size that takes seconds."""
    sizes: list[int] = []

    def multiply(size: int, repeats: int) -> list[float]:
        """100 GFLOP/s at 512 rows, less at others; the smallest size and a third of all products are
        disturbed."""
        sizes.append(size)
        rate = {128: 1e8, 256: 5e10, 512: 1e11}.get(size, 2e10)
        product_s = 2 * size**3 / rate
        return [product_s * (1 if number % 3 == 1 else 7) for number in range(repeats)]

    peak = matmul.measure_peak(multiply)
    assert peak.size == 512 and peak.gflops == pytest.approx(100.0)
    assert max(sizes) == 1024  # 2048 rows take 0.17 s at the best rate


@pytest.mark.parametrize(("own", "low", "high"), [(0.001, 0.0002, 0.003), (0.05, 0.02, 0.12)])
def test_the_noise_is_that_of_the_times(own: float, low: float, high: float) -> None:
    """Catches: a verdict that is the same for all machines; sides of pairs that are not adjacent, so that a
    slow drift looks like noise; a blur of many pairs that is not smaller than that of a few."""
    random, clock = np.random.default_rng(0), iter(range(10**9))

    def multiply(size: int, repeats: int) -> list[float]:
        return [0.015 * (1 + next(clock) / 500) * random.lognormal(0.0, own) for _ in range(repeats)]

    noise = aa_noise(multiply, threads=1)
    assert low < noise.blur < high and noise.blur_of_all < noise.blur
    assert noise.quiet == (own < 0.01)
    assert verdict(noise).startswith("quiet" if noise.quiet else "noisy")
    assert f"±{noise.blur:.1%}" in verdict(noise)
    assert noise.part_s == pytest.approx(0.015 * 1.12, rel=0.1)


def test_limits_are_stored_by_all_that_they_depend_on(tmp_path: Path) -> None:
    """Catches: the limit of another processor, version, precision or number of threads; a lower one that
    replaces a higher one, or removes others; an unreadable file that is never replaced."""
    matmul_limits.store_limit(tmp_path, CPU, LIMIT)
    assert matmul_limits.read_limit(tmp_path, CPU, "float32", 1) == LIMIT
    for other in ({"cpu": "Xeon"}, {"cores": 4}, {"device": "cuda"}, {"versions": {"torch": "2.14.0"}}):
        assert matmul_limits.read_limit(tmp_path, replace(CPU, **other), "float32", 1) is None
    assert matmul_limits.read_limit(tmp_path, CPU, "float64", 1) is None
    assert matmul_limits.read_limit(tmp_path, CPU, "float32", 2) is None
    matmul_limits.store_limit(tmp_path, CPU, replace(LIMIT, threads=2, gflops=190.0))
    assert matmul_limits.store_limit(tmp_path, CPU, replace(LIMIT, gflops=90.0)) == LIMIT
    assert matmul_limits.store_limit(tmp_path, CPU, replace(LIMIT, gflops=110.0)).gflops == 110.0
    assert {limit.gflops for limit in matmul_limits.read_limits(tmp_path, CPU)} == {110.0, 190.0}
    assert [path.name for path in (tmp_path / "machine").iterdir()] == [f"{CPU.id}.json"]
    for text in ("{", "[]", '{"device": 1}'):
        (tmp_path / f"machine/{CPU.id}.json").write_text(text)
        assert matmul_limits.read_limit(tmp_path, CPU, "float32", 1) is None
        matmul_limits.store_limit(tmp_path, CPU, LIMIT)
        assert matmul_limits.read_limit(tmp_path, CPU, "float32", 1) == LIMIT


def test_a_disturbed_limit_counts_until_a_better_one_is_measured(tmp_path: Path) -> None:
    """Catches: a limit of a busy machine that is never replaced; one that is marked disturbed although a
    quiet measurement was not higher."""
    busy = replace(LIMIT, disturbed=True)
    assert matmul_limits.store_limit(tmp_path, CPU, busy) == busy
    assert matmul_limits.store_limit(tmp_path, CPU, replace(busy, gflops=101.0)).disturbed
    assert matmul_limits.store_limit(tmp_path, CPU, LIMIT) == replace(LIMIT, gflops=101.0)
    assert matmul_limits.store_limit(tmp_path, CPU, replace(busy, gflops=90.0)) == replace(
        LIMIT, gflops=101.0
    )


@pytest.mark.usefixtures("own_cache")
def test_a_run_reports_its_share_of_the_limit(workspace: Workspace) -> None:
    """Catches: a share of another device's limit, or an inverted one; a limit that each run measures, or that
    `limit=off` measures; one that changes the run id; frameworks compared with different limits."""
    request = ("-m", "framework=torch", "data=iris", "train.epochs=1", "study=shares")
    status, printed = end(workspace.start(*request, "limit=off"))
    assert status == 0 and "multiplied" not in printed and " share " not in printed, printed
    assert not (workspace.results / "machine").exists()
    assert all("speed/share_of_limit" not in run.result["metrics"] for run in workspace.runs())
    status, printed = end(workspace.start(*request, "framework=torch,faulty", "certify=off", "optimizer=sgd"))
    assert status == 0 and printed.count("matrices are multiplied at up to") == 1, printed
    assert " share " in printed
    (path,) = (workspace.results / "machine").glob("*.json")
    (limit,) = json.loads(path.read_text())["limits"]
    assert (limit["precision"], limit["threads"], limit["framework"]) == ("float32", 1, "torch")
    later = [run for run in workspace.runs() if run.config["limit"] == "auto"]
    assert len(later) == 2
    for run in later:
        metrics = run.result["metrics"]
        share = metrics["speed/gflops"] / limit["gflops"]
        assert metrics["speed/share_of_limit"] == pytest.approx(share)
        assert 0 < share < 1.05
    path.write_text(path.read_text().replace('"disturbed": true', '"disturbed": false'))
    status, printed = end(workspace.start(*request, "seed=0,1"))
    assert status == 0 and "multiplied" not in printed, printed
    assert "1 runs finished before" in printed or "1 run finished before" in printed, printed


@pytest.mark.usefixtures("own_cache")
def test_runs_succeed_without_a_limit(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a run that fails because of a missing limit; an attempt to measure for each run of a sweep."""
    sweep = [word for word in FAULTY_SWEEP if word != "limit=off"]
    monkeypatch.setenv("AT_MULTIPLY", "raise")
    # a card that NVML reports and torch does not see
    tree(workspace.folder, {"pynvml.py": NVML.format(broken="False")})
    status, printed = end(workspace.start("-m", *sweep, "seed=0,1", "device=cuda:1"))
    assert status == 0 and printed.count("the matrix limit can't be measured") == 1, printed
    assert all("speed/share_of_limit" not in run.result["metrics"] for run in workspace.runs())
