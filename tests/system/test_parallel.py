"""Concurrent runs on one machine: every run once, none affected by another's end, nothing left over.

The command is the real one, in a child process, mostly with the framework of tests/support/faulty, which
fails on demand.
"""

from __future__ import annotations

import io
import itertools
import os
import re
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from harness.core.config.run_config import RunConfig
from harness.core.validation import ConfigError
from harness.shell.compose import hydra
from harness.shell.compose.fast_compose import TemplateComposer
from harness.shell.engines.protocol import Record
from harness.shell.engines.slots import check_concurrency, slot_specs
from harness.shell.reports.progress import reporter
from harness.shell.reports.progress_bars import BarReporter
from harness.shell.runs.inputs import RunInputs
from harness.shell.runs.prepare import prepare
from harness.shell.runs.records import PreparedRun
from harness.shell.session.session import Session
from tests.support.forked_command import Command
from tests.support.paths import FAULTY
from tests.support.workspace import Run, Workspace, check_consistent, cleanup, end, wait_until


@pytest.fixture
def workspace(tmp_path: Path, template: Path) -> Iterator[Workspace]:
    with cleanup(Workspace(tmp_path, template)) as workspace:
        yield workspace


def intervals(runs: Sequence[Run]) -> dict[int, list[tuple[int, int]]]:
    """Start and end of the training of each worker's runs, in ms."""
    spans: dict[int, list[tuple[int, int]]] = {}
    for run in runs:
        spans.setdefault(run.pid, []).append((run.events[0]["time_ms"], run.events[-1]["time_ms"]))
    return {pid: sorted(of_worker) for pid, of_worker in spans.items()}


def training(workspace: Workspace) -> list[Run]:
    """The runs that have trained an epoch and are in progress."""
    return [run for run in workspace.runs() if len(run.events) > 1 and run.status is None]


def test_three_slots_do_every_run_once(workspace: Workspace) -> None:
    """Catches: a run that is done twice or lost between slots; a worker that serves two runs at once; slots
    that wait for each other; a timing that is not marked as shared; MLflow runs mixed up between slots."""
    workspace.plant({"*": "slow"})
    status, printed = end(workspace.sweep("seed=range(9)", "workers=3"))
    assert status == 0, printed
    runs = workspace.runs()
    assert [(run.config["seed"], run.status, run.attempts) for run in runs] == [
        (seed, "finished", []) for seed in range(9)
    ]
    assert all([event.get("epoch") for event in run.events] == [None, 1, 2, 3] for run in runs)
    spans = intervals(runs)
    assert len(spans) == 3 and min(map(len, spans.values())) >= 2
    for mine in spans.values():
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(mine))
    first = [mine[0] for mine in spans.values()]
    assert max(begin for begin, _ in first) < min(end for _, end in first), "they were not concurrent"
    for run in runs:
        assert run.result["environment"]["workers"] == 3
        assert "it shared the machine with 2 more at a time" in run.result["timing"]["disturbed"]
    assert sorted(workspace.workers()) == sorted(spans)
    check_consistent(workspace)


def test_a_death_in_one_slot_does_not_affect_others(workspace: Workspace) -> None:
    """Catches: a killed, hung or crashed worker that ends another slot's worker or run, that ends its own
    slot, or that is recorded in another run."""
    workspace.plant({0: "slow", 1: "hang", 2: "segfault", 3: "slow", 5: "exit"})
    sweep = workspace.sweep("seed=range(8)", "workers=2", "timeout_s=6", "train.epochs=12")

    def slow() -> list[int]:
        return [run.pid for run in training(workspace) if run.config["seed"] == 3]

    wait_until(slow, sweep)
    os.kill(slow()[0], signal.SIGKILL)
    status, printed = end(sweep)
    assert status == 1, printed
    statuses = [run.status for run in workspace.runs()]
    died = {1: "timeout", 2: "failed", 3: "killed", 5: "failed"}
    assert statuses == [died.get(seed, "finished") for seed in range(8)]
    deaths = [(run.result["error"] or {}).get("type") for run in workspace.runs()]
    assert [deaths[seed] for seed in died] == ["timeout", "SIGSEGV", "SIGKILL", "exit"]
    assert [run.attempts for run in workspace.runs()] == [[]] * 8
    assert len(set(workspace.workers())) <= 2 + len(died)
    check_consistent(workspace)


def test_slots_reuse_their_workers(workspace: Workspace) -> None:
    """Catches: a worker of each kind in each slot where one suffices; a slot that stays idle because it has
    no worker for the remaining runs."""
    workspace.plant({"*": "slow"})

    def workers(seeds: str) -> dict[str, int]:
        """Number of workers that executed the new runs, by kind."""
        before = {run.folder.run_id for run in workspace.runs()}
        status, printed = end(workspace.sweep("framework.env.AT_IMPORT=one,two", seeds, "workers=2"))
        assert status == 0, printed
        pids: dict[str, set[int]] = {}
        for run in [run for run in workspace.runs() if run.folder.run_id not in before]:
            pids.setdefault(run.config["framework"]["env"]["AT_IMPORT"], set()).add(run.pid)
        return {kind: len(of_kind) for kind, of_kind in pids.items()}

    assert workers("seed=range(3)") == {"one": 1, "two": 1}
    assert end(workspace.sweep("framework.env.AT_IMPORT=one", "seed=range(3,8)"))[0] == 0
    assert workers("seed=range(9)") == {"one": 1, "two": 2}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_all_slots(workspace: Workspace, number: signal.Signals) -> None:
    """Catches: a worker that stays, a run without a result or left open in MLflow, a slot that starts one
    more run, a command that hangs or cannot be resumed."""
    workspace.plant({"*": "slow"})
    sweep = ("seed=range(6)", "train.epochs=8", "workers=3")
    process = workspace.sweep(*sweep)
    wait_until(lambda: len(training(workspace)) == 3, process)
    os.killpg(process.pid, number)
    status, printed = end(process)
    assert status == 128 + number, printed
    assert "run the same command again to resume" in printed
    assert "Traceback" not in printed
    ended = [run for run in workspace.runs() if run.status != "finished"]
    assert [(run.status, run.result["error"]["type"]) for run in ended] == [("killed", "interrupted")] * 3
    assert len(workspace.runs()) == 3
    check_consistent(workspace)
    workspace.plant({})
    assert end(workspace.sweep(*sweep))[0] == 0
    assert [run.status for run in workspace.runs()] == ["finished"] * 6
    check_consistent(workspace)


def test_pinned_slots_have_cores_of_their_own(workspace: Workspace) -> None:
    """Catches: workers that share a core; library threads that started before the pinning."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        pytest.skip("needs two cores")
    workspace.plant({"*": "slow"})
    process = workspace.sweep("seed=range(2)", "train.epochs=20", "workers=2", "pin=true")
    wait_until(lambda: len(training(workspace)) == 2, process)
    seen = {run.pid: [affinity(thread.id) for thread in threads(run.pid)] for run in training(workspace)}
    assert end(process)[0] == 0
    assert sorted(map(sorted, (set().union(*cores_of) for cores_of in seen.values()))) == [
        [cores[0]],
        [cores[1]],
    ]
    recorded = [run.result["environment"]["affinity"] for run in workspace.runs()]
    assert sorted(recorded) == [str(core) for core in cores[:2]]


def threads(pid: int) -> Sequence[Any]:
    of_process: Sequence[Any] = psutil.Process(pid).threads()
    return of_process


def affinity(thread: int) -> set[int]:
    return os.sched_getaffinity(thread)


def plain(workspace: Workspace) -> dict[str, Any]:
    """The configuration of a run in the faulty framework."""
    assert end(workspace.sweep("seed=100"))[0] == 0
    return workspace.runs()[-1].config


@pytest.fixture
def prepared(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Any:
    config = plain(workspace)
    monkeypatch.chdir(workspace.folder)

    def make(*changes: Mapping[str, Any]) -> list[PreparedRun]:
        return prepare([RunConfig.parse({**config, **one}) for one in changes], RunInputs())

    return make


def test_comparisons_of_speed_are_not_concurrent(prepared: Any) -> None:
    """Catches: a comparison of speeds with concurrent runs that is not refused, without `timings=shared`; a
    sweep over seeds and numbers that is refused; a message without the keys or a solution."""
    two = {"workers": 2}
    check_concurrency(prepared({**two, "seed": 1}, {**two, "seed": 2}))
    check_concurrency(prepared({"repeat": 0}, {"repeat": 1}))
    check_concurrency(prepared(*({**two, "repeat": number, "timings": "shared"} for number in range(2))))
    runs = prepared({**two, "repeat": 0}, {**two, "repeat": 1, "threads": 2})
    with pytest.raises(ConfigError, match=r"differ in threads, repeat(.|\n)*workers=1; or timings=shared"):
        check_concurrency(runs)
    with pytest.raises(ConfigError, match="workers: differs between the runs"):
        check_concurrency(prepared({"workers": 1}, {"workers": 2, "seed": 1}))


def test_pinning_needs_enough_cores(prepared: Any) -> None:
    """Catches: slots without a core, or with another slot's core."""
    cores = len(os.sched_getaffinity(0))
    check_concurrency(fitting := prepared({"workers": cores, "pin": True}))
    taken = [spec.cores for spec in slot_specs(fitting)]
    assert sorted(core for cores_of in taken for core in cores_of) == sorted(os.sched_getaffinity(0))
    problem = f"{cores} runs at a time with threads=2 need {2 * cores} cores; there are {cores}"
    with pytest.raises(ConfigError, match=problem):
        check_concurrency(prepared({"workers": cores, "pin": True, "threads": 2}))


def test_should_continue_ends_runs(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a callback that is not called after each epoch, or is called by two slots at once or with
    another run; a run that continues nonetheless, or counts as failed; a slot that hangs afterwards."""
    config = plain(workspace)
    monkeypatch.chdir(workspace.folder)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(FAULTY.parents[1]), str(FAULTY))))
    monkeypatch.setenv("FAULTS", str(workspace.folder / "faults.json"))
    decisions: list[tuple[int, int]] = []
    busy = threading.Lock()

    def should_continue(number: int, record: Record) -> bool:
        assert busy.acquire(blocking=False)
        decisions.append((number, record["epoch"]))
        busy.release()
        return number % 2 == 0 or record["epoch"] < 2

    configs = [RunConfig.parse({**config, "seed": seed, "workers": 2}) for seed in range(4)]
    with Session(reporter()) as session:
        outcomes = session.execute(configs, should_continue=should_continue)
    assert [outcome.result["status"] for outcome in outcomes] == ["finished", "pruned"] * 2
    assert sorted(decisions) == [(n, epoch) for n in range(4) for epoch in range(1, 3 if n % 2 else 4)]
    first = workspace.runs()[:4]
    assert [len(run.result["epochs"]) for run in first] == [3, 2, 3, 2]
    check_consistent(workspace)


def test_an_exception_of_the_callback_ends_the_sweep(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: a slot that dies silently, and a command that waits for it forever."""
    config = plain(workspace)
    monkeypatch.chdir(workspace.folder)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(FAULTY.parents[1]), str(FAULTY))))
    monkeypatch.setenv("FAULTS", str(workspace.folder / "faults.json"))
    workspace.plant({"*": "slow"})

    def should_continue(number: int, record: Record) -> bool:
        raise OSError("no space left")

    configs = [RunConfig.parse({**config, "seed": seed, "workers": 2}) for seed in range(4)]
    with pytest.raises(OSError, match="no space left"), Session(reporter()) as session:
        session.execute(configs, should_continue=should_continue)
    assert len([run for run in workspace.runs() if run.config["seed"] < 4]) == 2
    assert all(run.status == "killed" for run in workspace.runs() if run.config["seed"] < 4)
    check_consistent(workspace)


def test_the_shell_sleeps(workspace: Workspace) -> None:
    """Catches: a shell that polls, and so disturbs the runs that are measured."""
    workspace.plant({"*": "hang"})
    process = workspace.sweep("seed=range(2)", "workers=2", "timeout_s=8")
    wait_until(lambda: len(training(workspace)) == 2, process)
    before = cpu_s(process)
    wait_until(lambda: all(run.status for run in workspace.runs()), process)
    used = cpu_s(process) - before
    assert end(process)[0] == 1
    assert used < 2.0


def cpu_s(process: Command) -> float:
    times = psutil.Process(process.pid).cpu_times()
    return float(times.user + times.system)


@pytest.mark.parametrize(
    "sweep",
    [
        ("model=fnn,cnn", "optimizer.learning_rate=0.1,1e-3", "seed=range(2)"),
        ("experiment=bench", "model=fnn", "framework=torch", "seed=0,1"),
        ("train.epochs=1,2", "train={epochs: 3, batch_size: 4},{epochs: 5, batch_size: 6}"),
        ("force=true,false", "study=a,b", "train.target=null,{metric: val/loss, value: 1}"),
    ],
)
def test_runs_that_differ_in_numbers_are_composed_as_by_hydra(
    sweep: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: a number left over from another run, set in another order, or read as the name of a file; a
    configuration that records other overrides."""
    of_frames = TemplateComposer.compose
    compared = []

    def compose(self: TemplateComposer, overrides: Sequence[str]) -> DictConfig:
        ours = of_frames(self, overrides)
        theirs = self._loader.load_sweep_config(self._sweep, list(overrides))
        compared.append([OmegaConf.to_container(config, resolve=False) for config in (ours, theirs)])
        return ours

    monkeypatch.setattr(TemplateComposer, "compose", compose)
    hydra.collect(sweep)
    assert len(compared) >= 4
    for ours, theirs in compared:
        assert ours == theirs


def test_progress_has_a_line_for_each_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a terminal that shows one run of several, no remaining time, a remaining time for one slot
    only, or a wrong best run; a bar that a failure ends with an exception."""
    now = [0.0]
    monkeypatch.setattr("harness.shell.reports.progress_bars.time.monotonic", lambda: now[0])
    file = io.StringIO()
    shown = BarReporter(Console(file=file, force_terminal=True, width=100, color_system=None))

    def screen() -> str:
        """The current content of the screen."""
        shown._bars.refresh()  # as it does a few times a second
        file.truncate(file.seek(0))
        shown.note("here it is:")
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", file.getvalue()).partition("here it is:")[2]

    shown.begin(40, 4, 1)
    shown.started("a", "fnn s0", "1", 10, 0)
    shown.started("b", "fnn s1", "2", 10, 0)
    for epoch in (1, 2):
        now[0] = 5.0 * epoch
        for run in ("a", "b"):
            shown.epoch(run, {"epoch": epoch, "metrics": {"val/loss": 1.0, "val/accuracy": 0.5}})
    lines = screen()
    assert re.search(r"runs .*0/4 +1:30 left", lines), lines  # 4 epochs in 10 s, 36 to go
    assert re.search(r"fnn s0 .*2/10 .*val/accuracy 0.5", lines) and re.search(r"fnn s1 .*2/10", lines), lines
    shown.ended("a", {"status": "finished", "metrics": {"val/accuracy": 0.7}})
    shown.started("c", "fnn s2", "1", 10, 0)
    shown.ended("b", {"status": "finished", "metrics": {"val/accuracy": 0.9}})
    shown.ended("c", {"status": "killed", "error": {"message": "out of memory?"}})
    lines = screen()
    assert re.search(r"runs .*3/4", lines) and "best val/accuracy 0.9: fnn s1" in lines, lines
    assert "fnn s2" not in lines
    shown.close()
