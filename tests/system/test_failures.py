"""If a framework breaks its worker, the run is recorded as failed and the sweep continues.

The faults are real ones in a framework added by a user (tests/support/faulty), and the command is the real
one, in a child process.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from harness.core.config.run_config import RunConfig
from harness.shell.environment import devices
from harness.shell.environment.cards import Card
from harness.shell.reports.progress import reporter
from harness.shell.session.session import Session
from tests.support.paths import FAULTY
from tests.support.workspace import Run, Workspace, check_consistent, cleanup, end, wait_until

FAULTS = (
    "",
    "raise",
    "",
    "exit",
    "sys.exit",
    "segfault",
    "kill",
    "fork",
    "hang",
    "stop",
    "nan",
    "chat",
    "",
    "",
)
SEED = {fault: seed for seed, fault in reversed(list(enumerate(FAULTS)))}
LAST = len(FAULTS) - 1


@pytest.fixture
def workspace(tmp_path: Path, template: Path) -> Iterator[Workspace]:
    with cleanup(Workspace(tmp_path, template)) as workspace:
        yield workspace


@pytest.fixture(scope="module")
def faulty_sweep(tmp_path_factory: pytest.TempPathFactory, template: Path) -> Iterator[Workspace]:
    """One sweep in which each seed's run has the fault of that index in `FAULTS`."""
    with cleanup(Workspace(tmp_path_factory.mktemp("faulty_sweep"), template)) as workspace:
        workspace.plant(dict(enumerate(FAULTS)))
        status, printed = end(workspace.sweep(f"seed=range({len(FAULTS)})", "timeout_s=4"))
        assert status == 1, printed
        yield workspace


def run_with(workspace: Workspace, fault: str) -> Run:
    """The run that had a fault."""
    return workspace.runs()[SEED[fault]]


@pytest.mark.parametrize(
    ("fault", "status", "kind", "message", "in_log"),
    [
        ("raise", "failed", "FloatingPointError", "the numbers are wrong", "in raise_error"),
        ("exit", "failed", "exit", "exited with status 3", ""),
        ("sys.exit", "failed", "exit", "exited with status 4", ""),
        ("segfault", "failed", "SIGSEGV", "ended by SIGSEGV", "in segfault"),
        ("kill", "killed", "SIGKILL", "out of memory?", ""),
        ("fork", "killed", "SIGKILL", "out of memory?", ""),
        ("hang", "timeout", "timeout", "timeout_s=4", "in hang"),
        ("stop", "failed", "RuntimeError", "stopped before it had trained all epochs", "RuntimeError"),
        ("nan", "diverged", "diverged", "not finite in epoch 2; the learning rate 0.01", ""),
    ],
)
def test_every_death_is_recorded(
    faulty_sweep: Workspace, fault: str, status: str, kind: str, message: str, in_log: str
) -> None:
    """Catches: a death that ends the sweep; a result or MLflow run without its status, reason, log tail or
    the epoch before it; a timeout that does not show where the worker hung; a shell that waits forever for a
    pipe that the dead worker's child holds open; an epoch that counts although its training was skipped."""
    run = run_with(faulty_sweep, fault)
    assert run.status == status
    assert run.result["error"]["type"] == kind
    assert message in run.result["error"]["message"]
    assert in_log in run.result["error"]["log_tail"]
    assert [epoch["epoch"] for epoch in run.result["epochs"]] == [1]
    tracked = next(t for t in faulty_sweep.tracked() if t.tags["run_id"] == run.folder.run_id)
    assert tracked.status == ("KILLED" if status == "killed" else "FAILED")
    assert tracked.tags["status"] == status
    assert tracked.tags["error"].startswith(f"{kind}: ")
    assert message in tracked.tags["error"]


def test_the_sweep_continues(faulty_sweep: Workspace) -> None:
    """Catches: runs after a death that are skipped; MLflow runs left open; leftover processes and files."""
    finished = [run.status == "finished" for run in faulty_sweep.runs()]
    assert finished == [fault in ("", "chat") for fault in FAULTS]
    check_consistent(faulty_sweep)
    assert [study.status for study in faulty_sweep.tracked("study")] == ["FAILED"]


def test_a_worker_survives_an_exception(faulty_sweep: Workspace) -> None:
    """Catches: a worker that is discarded, with its imports and programs, after an exception or a divergence;
    a program that is used again after an exception interrupted it."""
    pids = [run.pid for run in faulty_sweep.runs()]
    changes = [FAULTS[seed - 1] for seed in range(1, len(pids)) if pids[seed] != pids[seed - 1]]
    assert changes == ["exit", "sys.exit", "segfault", "kill", "fork", "hang"]
    assert len(faulty_sweep.workers()) == len(set(pids)) == 7
    new_programs = [run.result["timing"].get("new_program") for run in faulty_sweep.runs()]
    assert new_programs[SEED["raise"] : SEED["raise"] + 2] == [False, True]
    assert new_programs[LAST - 1 :] == [False, False]
    again = faulty_sweep.runs()[SEED["nan"] + 1]
    assert again.pid == run_with(faulty_sweep, "nan").pid


def test_what_a_framework_prints_goes_to_the_log(faulty_sweep: Workspace) -> None:
    """Catches: a full pipe; output within the protocol; output that is lost or in another run's log."""
    run = run_with(faulty_sweep, "chat")
    log = (run.folder.path / "worker.log").read_text()
    assert log.count(f"{0:06d} {'x' * 42}\n") == log.count(f"{3999:06d} {'x' * 42}\n") == 2
    assert "straight to the descriptor\n" in log
    assert [event["event"] for event in run.events] == ["started", "epoch", "epoch", "epoch"]
    assert (faulty_sweep.runs()[LAST].folder.path / "worker.log").read_text() == ""


def test_only_failed_runs_are_retried(workspace: Workspace) -> None:
    """Catches: a failure treated as final; a finished or diverged run that is repeated; an exit status that
    ignores an earlier divergence; attempts that are lost."""
    workspace.plant({1: "raise", 2: "exit", 3: "nan"})
    sweep = ("seed=range(4)",)
    assert end(workspace.sweep(*sweep))[0] == 1
    first = workspace.runs()
    workspace.plant({})
    status, printed = end(workspace.sweep(*sweep))
    assert (status, "2 runs to do, 2 runs finished before" in printed) == (1, True), printed
    second = workspace.runs()
    assert [run.status for run in second] == ["finished", "finished", "finished", "diverged"]
    assert [run.attempts for run in second] == [[], ["1"], ["1"], []]
    for seed in (1, 2):
        attempt = second[seed].folder.path / "attempts" / "1"
        assert (attempt / "events.jsonl").exists()
        assert first[seed].result["error"]["type"] in (attempt / "result.json").read_text()
    workers = workspace.workers()
    status, printed = end(workspace.sweep(*sweep))
    assert (status, "nothing to do: 4 runs" in printed) == (1, True), printed
    assert workspace.workers() == workers
    assert [run.events for run in workspace.runs()] == [run.events for run in second]
    check_consistent(workspace)


def test_a_framework_that_fails_to_start(workspace: Workspace) -> None:
    """Catches: a reason that is lost because the worker failed before its run; a wait for the timeout with a
    dead worker; a sweep that ends there."""
    status, printed = end(workspace.sweep("framework.env.AT_IMPORT=raise,segfault,nothing"))
    assert status == 1, printed
    runs = {run.config["framework"]["env"]["AT_IMPORT"]: run for run in workspace.runs()}
    statuses = {name: run.status for name, run in runs.items()}
    assert statuses == {"raise": "failed", "segfault": "failed", "nothing": "finished"}
    error = runs["raise"].result["error"]
    assert error["type"] == "ImportError"
    assert error["message"].startswith("faulty_adapter can't start: libnumbers.so.7")
    assert "in adapter" in error["log_tail"]
    error = runs["segfault"].result["error"]
    assert "ended by SIGSEGV while it imported faulty_adapter" in error["message"]
    assert "in segfault" in error["log_tail"]
    assert "numpy is here" in error["log_tail"]
    check_consistent(workspace)


def test_a_worker_killed_from_outside(workspace: Workspace) -> None:
    """Catches: a kill by the system or a user that is not recorded as a kill."""
    workspace.plant({1: "slow"})
    sweep = workspace.sweep("seed=range(3)", "train.epochs=20")

    def training() -> list[int]:
        return [run.pid for run in workspace.runs() if run.config["seed"] == 1 and len(run.events) > 1]

    wait_until(training, sweep)
    os.kill(training()[0], signal.SIGKILL)
    status, printed = end(sweep)
    assert status == 1, printed
    runs = workspace.runs()
    assert [run.status for run in runs] == ["finished", "killed", "finished"]
    assert runs[0].pid == runs[1].pid != runs[2].pid
    assert 1 <= len(runs[1].result["epochs"]) < 20
    check_consistent(workspace)


def test_portions_of_a_sweep(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a worker that is not reused by the next portion; one that died while idle and fails the next
    run; a fresh run in a warm worker; an error on a GPU that affects later runs."""
    assert end(workspace.sweep("seed=0"))[0] == 0
    plain = workspace.runs()[0].config
    monkeypatch.chdir(workspace.folder)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(FAULTY.parents[1]), str(FAULTY))))
    monkeypatch.setenv("FAULTS", str(workspace.folder / "faults.json"))
    monkeypatch.setattr(devices, "_cards_of", lambda allowed: (Card("one that NumPy leaves alone", id="0"),))
    workspace.plant({5: "raise"})
    pids = []
    with Session(reporter()) as session:

        def run(seed: int, **changes: object) -> None:
            session.execute([RunConfig.parse({**plain, "seed": seed, **changes})])
            pids.append(workspace.runs()[seed].pid)

        run(1)
        run(2)
        os.kill(pids[-1], signal.SIGKILL)
        wait_until(lambda: not psutil.pid_exists(pids[-1]) or psutil.Process(pids[-1]).status() == "zombie")
        run(3)
        run(4, isolation="fresh")
        run(5, device="cuda")
        run(6, device="cuda")
    assert [outcome.result["status"] for outcome in session.outcomes] == [
        *("finished", "finished", "finished", "finished", "failed", "finished")
    ]
    assert pids[0] == pids[1]
    assert len(set(pids)) == 5
    check_consistent(workspace)


def test_a_divergence_names_its_likely_cause(workspace: Workspace) -> None:
    """Catches: a NaN stored as a result; a hint that blames the learning rate for unscaled data, or the data
    for the learning rate."""
    model = ("model.units=[4]", "model.activation=linear")  # rectifiers would die before an overflow
    sweep = ("-m", "framework=torch", "data=linear", "optimizer=sgd", "train.epochs=30", *model)
    numbers = ("data.standardise=true,false", "data.standardise_targets=true,false")
    axes = (*numbers, "optimizer.learning_rate=0.01,1e3")
    status, printed = end(workspace.start(*sweep, *axes))
    assert status == 1, printed
    messages = {}
    for run in workspace.runs():
        message = (run.result["error"] or {}).get("message", "")
        assert run.status == ("diverged" if message else "finished")
        data = run.config["data"]
        rate = run.config["optimizer"]["learning_rate"]
        messages[data["standardise"], data["standardise_targets"], rate] = message
    assert messages[True, True, 0.01] == ""
    too_high = "the learning rate 1000 is probably too high: try optimizer.learning_rate=100"
    assert too_high in messages[True, True, 1e3]
    unscaled = "the targets are not standardised and reach 199: try data.standardise_targets=true"
    assert unscaled in messages[True, False, 1e3]
    for message in [message for (inputs, _, _), message in messages.items() if not inputs]:
        assert "the inputs are not standardised and reach 99: try data.standardise=true" in message


def test_a_run_that_waited_for_its_core_is_marked(workspace: Workspace) -> None:
    """Catches: a timing disturbed by other work on the machine that is not marked."""
    workspace.plant({0: "slow"})
    status, printed = end(workspace.sweep("seed=0"))
    assert status == 0, printed
    (reason,) = (r for r in workspace.runs()[0].result["timing"]["disturbed"] if "no core" in r)
    assert reason in workspace.tracked()[0].tags["timing.disturbed"]
    assert "* other work disturbed the timing of 1 of 1 runs" in printed
