"""A sweep can be stopped at any instant, resumed, extended, and run twice at once.

The command is the real one, in child processes, with the framework of tests/support/faulty, which can be
slowed down.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.core.runs.run_folder import RunFolder
from harness.core.storage import locks
from harness.shell.tracking.studies import study_is_left_open, study_lock
from tests.support.forked_command import Command
from tests.support.workspace import Workspace, check_consistent, cleanup, end, wait_until


@pytest.fixture
def workspace(tmp_path: Path, template: Path) -> Iterator[Workspace]:
    with cleanup(Workspace(tmp_path, template)) as workspace:
        yield workspace


@pytest.fixture
def new_workspace(tmp_path: Path) -> Iterator[Workspace]:
    """A workspace without a store: the first command creates it, and may be killed meanwhile."""
    with cleanup(Workspace(tmp_path)) as workspace:
        yield workspace


def event_lines(workspace: Workspace) -> int:
    """Number of event lines, including those of earlier attempts, so that it only grows."""
    return sum(
        len(RunFolder(path.parent).events()) for path in workspace.results.rglob("runs/**/events.jsonl")
    )


def results(workspace: Workspace) -> int:
    return sum(1 for _ in workspace.results.glob("runs/*/result.json"))


def is_running(workspace: Workspace, seed: int) -> bool:
    """Whether the runs before that seed are finished, and the seed's run has trained an epoch."""
    runs = workspace.runs()
    finished = [run.config["seed"] for run in runs if run.status == "finished"]
    begun = [run.config["seed"] for run in runs if run.status is None and len(run.events) >= 2]
    return finished == list(range(seed)) and begun == [seed]


def check_finished_once(workspace: Workspace, count: int, epochs: int) -> None:
    """Check that every run has one folder, one attempt that trained each epoch once, and one MLflow run."""
    runs = workspace.runs()
    assert [run.config["seed"] for run in runs] == list(range(count))
    assert [run.status for run in runs] == ["finished"] * count
    for run in runs:
        assert [event.get("epoch") for event in run.events] == [None, *range(1, epochs + 1)]
    active = [tracked for tracked in workspace.tracked() if tracked.active]
    assert [tracked.status for tracked in active] == ["FINISHED"] * count
    assert [study.status for study in workspace.tracked("study")] == ["FINISHED"]
    check_consistent(workspace)


def test_a_parent_killed_at_any_instant(new_workspace: Workspace) -> None:
    """Catches: a worker that outlives its shell; a run that is lost or done twice; an MLflow run left
    running; a duplicate metric point; a partial line or a folder that stops the next command."""
    workspace = new_workspace
    sweep = ("seed=range(5)", "train.epochs=4")
    chance = random.Random(7)
    some = chance.randint(1, 8)
    instants: list[tuple[str, Callable[[int, int], object]]] = [
        ("slow", lambda lines, done: True),  # start-up
        (
            "slow",
            lambda lines, done: (workspace.results / "mlflow.db").exists(),
        ),  # the store is being created
        ("slow", lambda lines, done: done >= 1),  # between two runs
        ("slow", lambda lines, done: lines >= some),
        ("hang", lambda lines, done: lines >= 2),  # in a run whose worker reports nothing
        ("slow", lambda lines, done: "RUNNING" in [tracked.status for tracked in workspace.tracked()]),
    ]
    for fault, come in instants:
        workspace.plant({"*": fault})
        lines, done = event_lines(workspace), results(workspace)
        process = workspace.sweep(*sweep)

        def due(come: Callable[[int, int], object] = come, lines: int = lines, done: int = done) -> object:
            return come(event_lines(workspace) - lines, results(workspace) - done)

        wait_until(due, process)
        if fault != "hang":
            time.sleep(chance.random() * 0.3)
        process.kill()
        end(process)
        wait_until(lambda: not workspace.processes())
    workspace.plant({})
    before = results(workspace)
    assert 1 <= before < 5
    assert end(workspace.sweep("seed=5", "train.epochs=4"))[0] == 0
    assert "RUNNING" not in [tracked.status for tracked in workspace.tracked()]
    status, printed = end(workspace.sweep(*sweep))
    assert status == 0, printed
    assert f"{5 - before} run" in printed
    check_finished_once(workspace, 6, 4)


def test_only_what_is_missing_is_done(workspace: Workspace) -> None:
    """Catches: a needless worker; a finished run that is repeated; a missing count; `force` without effect; a
    warm worker that is not reused, a fresh one that is."""
    assert end(workspace.sweep("seed=range(2)"))[0] == 0
    first = workspace.runs()
    assert len(workspace.workers()) == 1
    status, printed = end(workspace.sweep("seed=range(2)"))
    assert (status, len(workspace.workers())) == (0, 1)
    assert "nothing to do: 2 runs finished before (force=true does them again)" in printed
    status, printed = end(workspace.sweep("seed=range(4)", "isolation=fresh"))
    assert (status, len(workspace.workers())) == (0, 3)
    assert "2 runs to do, 2 runs finished before" in printed
    second = workspace.runs()
    assert [run.events for run in second[:2]] == [run.events for run in first]
    assert second[0].pid == second[1].pid
    assert len({run.pid for run in second}) == 3
    check_finished_once(workspace, 4, 3)
    status, printed = end(workspace.sweep("seed=range(4)", "force=true"))
    assert (status, len(workspace.workers())) == (0, 4)
    assert "4 runs to do" in printed
    assert [run.attempts for run in workspace.runs()] == [["1"]] * 4
    assert len({run.pid for run in workspace.runs()} - {run.pid for run in second}) == 1
    check_finished_once(workspace, 4, 3)


def start_two(workspace: Workspace, *sweep: str, second: str) -> tuple[list[Command], int]:
    """Start two commands, the second with one more argument. The worker of the first, whose process id is
    returned, is stopped in the middle of a run, and the worker of the other waits for the run's folder."""
    workspace.plant({0: "slow"})
    first = workspace.sweep(*sweep)
    wait_until(lambda: event_lines(workspace) >= 2, first)
    worker = workspace.runs()[0].pid
    os.kill(worker, signal.SIGSTOP)
    other = workspace.sweep(*sweep, second)
    wait_until(lambda: len(workspace.workers()) == 2 and waits_for_a_lock(workspace.workers()[1]), other)
    return [first, other], worker


def waits_for_a_lock(pid: int) -> bool:
    words = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    return any(line[1] == "->" and line[5] == str(pid) for line in words)


def test_two_commands_at_once(workspace: Workspace) -> None:
    """Catches: a run done by both; a run that fails because another command held it for longer than the
    timeout; two MLflow runs for one run; a study left open by both."""
    processes, worker = start_two(workspace, "seed=range(4)", second="timeout_s=2")
    time.sleep(2.5)
    os.kill(worker, signal.SIGCONT)
    for status, printed in map(end, processes):
        assert status == 0, printed
    assert [run.attempts for run in workspace.runs()] == [[]] * 4
    check_finished_once(workspace, 4, 3)


def test_two_commands_bring_the_same_run_into_mlflow(workspace: Workspace) -> None:
    """Catches: two active MLflow runs for one run, created because both commands saw none."""
    from harness.shell.tracking.store import open_store
    from harness.shell.tracking.tracker import Tracker

    trackers = [Tracker(open_store(workspace.results)) for _ in range(2)]
    barrier = threading.Barrier(len(trackers), timeout=30)
    folder = workspace.results / "runs" / "0"
    folder.mkdir(parents=True)
    job = {"run_id": "0", "study": "both", "config": {}}

    def begin(tracker: Tracker) -> None:
        tracker.studies.open("both")
        for _ in range(5):
            barrier.wait()
            tracker.begin(folder, job)
        barrier.wait()
        tracker.studies.finish("both")

    threads = [threading.Thread(target=begin, args=(tracker,)) for tracker in trackers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len([tracked for tracked in workspace.tracked() if tracked.active]) == 1
    assert [study.status for study in workspace.tracked("study")] == ["FINISHED"]


def test_a_command_takes_over_from_another(workspace: Workspace) -> None:
    """Catches: the death of a worker that overwrites the result of the sweep that waited for the folder and
    did the run meanwhile."""
    processes, worker = start_two(workspace, "seed=range(2)", second="train.epochs=3")
    os.kill(worker, signal.SIGKILL)
    for status, printed in map(end, processes):
        assert status == 0, printed
    assert [run.attempts for run in workspace.runs()] == [["1"], []]
    check_finished_once(workspace, 2, 3)


def test_a_parent_killed_between_its_last_run_and_its_end(workspace: Workspace) -> None:
    """Catches: a study that stays RUNNING in MLflow because the next command has no run to do."""
    workspace.plant({"*": "slow"})
    process = workspace.sweep("seed=range(2)")
    wait_until(lambda: workspace.tracked("study") and event_lines(workspace), process)
    to_end = study_lock(workspace.results, "default").with_suffix(".making")  # locked while a study is ended
    with locks.exclusive_lock(to_end):
        wait_until(lambda: [run.status for run in workspace.tracked()] == ["FINISHED"] * 2, process)
        process.kill()
        end(process)
    wait_until(lambda: not workspace.processes())
    assert [study.status for study in workspace.tracked("study")] == ["RUNNING"]
    for _ in range(2):
        status, printed = end(workspace.sweep("seed=range(2)"))
        assert (status, "2 runs finished before" in printed) == (0, True), printed
        check_finished_once(workspace, 2, 3)
        assert not study_is_left_open(workspace.results, "default")


def test_a_sweep_that_is_stopped(workspace: Workspace) -> None:
    """Catches: a worker that stays, a run without a result, an MLflow run left open, a traceback, another
    exit status, a command that cannot be resumed; after Ctrl-C and after a batch system's signal."""
    sweep = ("seed=range(4)", "train.epochs=15")

    def stop(seed: int, number: int, whole_group: bool) -> None:
        """Send a signal in the middle of a seed's run."""
        workspace.plant({seed: "slow"})
        process = workspace.sweep(*sweep)
        wait_until(lambda: is_running(workspace, seed), process)
        (os.killpg if whole_group else os.kill)(process.pid, number)
        status, printed = end(process)
        assert status == 128 + number, printed
        assert "run the same command again to resume" in printed
        assert "Traceback" not in printed
        stopped = workspace.runs()[seed]
        assert (stopped.status, stopped.result["error"]["type"]) == ("killed", "interrupted")
        active = [tracked.status for tracked in workspace.tracked() if tracked.active]
        assert active == ["FINISHED"] * seed + ["KILLED"]
        check_consistent(workspace)

    stop(1, signal.SIGINT, whole_group=True)  # as a terminal does
    stop(2, signal.SIGTERM, whole_group=False)
    workspace.plant({})
    status, printed = end(workspace.sweep(*sweep))
    assert (status, "2 runs to do, 2 runs finished before" in printed) == (0, True), printed
    check_finished_once(workspace, 4, 15)


@pytest.mark.slow
def test_runs_that_differ_in_numbers_share_a_program(workspace: Workspace) -> None:
    """Catches: a number compiled into the program, so that each value compiles again; a program that is not
    reused by the next run."""
    sweep = ("-m", "framework=torch", "execution=compiled", "data=iris", "train.epochs=2", "optimizer=adamw")
    axes = ("optimizer.learning_rate=1e-3,1e-2", "optimizer.weight_decay=0.01,0.1", "seed=0,1")
    status, printed = end(workspace.start(*sweep, *axes))
    assert status == 0, printed
    timings = [
        run.result["timing"] for run in sorted(workspace.runs(), key=lambda run: run.events[0]["time_ms"])
    ]
    assert timings[0]["new_program"] and timings[0]["compilations"] >= 1
    assert [timing["compilations"] for timing in timings[1:]] == [0] * 7
    assert len({run.pid for run in workspace.runs()}) == 1
