"""A sweep can be stopped at any instant, asked for again, extended, and asked for twice at once.

The command is the real one, in child processes, in the framework of tests/faulty, which can be slowed down.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.job import RunFolder
from tests.place import Place, check_consistent, end, left_clean, wait_until


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with left_clean(Place(tmp_path)) as place:
        yield place


def event_lines(place: Place) -> int:
    return sum(len(RunFolder(p).events()) for p in place.results.glob("runs/*"))


def results(place: Place) -> int:
    return sum(1 for _ in place.results.glob("runs/*/result.json"))


def check_finished_once(place: Place, count: int, epochs: int) -> None:
    """Every run has one folder, one attempt that trained each epoch once, one MLflow run that shows it."""
    runs = place.runs()
    assert [run.config["seed"] for run in runs] == list(range(count))
    assert [run.status for run in runs] == ["finished"] * count
    for run in runs:
        assert [event.get("epoch") for event in run.events] == [None, *range(1, epochs + 1)]
    active = [tracked for tracked in place.tracked() if tracked.active]
    assert [tracked.status for tracked in active] == ["FINISHED"] * count
    assert [study.status for study in place.tracked("study")] == ["FINISHED"]
    check_consistent(place)


def test_a_parent_killed_at_any_instant(place: Place) -> None:
    """Catches: a worker that outlives its parent, a run lost or done twice, an MLflow run left running, a
    metric point twice, half a line, a folder that stops the next command."""
    place.suffer({"*": "slow"})
    sweep = ("seed=range(5)", "train.epochs=4")
    chance = random.Random(7)
    some = chance.randint(1, 8)
    instants: list[Callable[[int, int], bool]] = [
        lambda lines, done: True,  # start-up
        lambda lines, done: (place.results / "mlflow.db").exists(),  # MLflow and worker starting
        lambda lines, done: lines >= 1,  # a run has just begun
        lambda lines, done: lines >= 4,  # in a run
        lambda lines, done: done >= 1,  # between two runs
        lambda lines, done: lines >= some,
    ]
    for instant in instants:
        lines, done = event_lines(place), results(place)
        process = place.sweep(*sweep)

        def due(come: Callable[[int, int], bool] = instant, lines: int = lines, done: int = done) -> bool:
            return come(event_lines(place) - lines, results(place) - done)

        wait_until(due, process)
        time.sleep(chance.random() * 0.3)
        process.kill()
        end(process)
        wait_until(lambda: not place.processes())
    before = results(place)
    status, printed = end(place.sweep(*sweep))
    assert status == 0, printed
    assert 1 <= before < 5
    assert f"{5 - before} runs to do, " in printed
    check_finished_once(place, 5, 4)


def test_only_what_is_missing_is_done(place: Place) -> None:
    """Catches: a worker started for nothing, a finished run done again, a missing count, `force` that
    does nothing; a warm worker that is not shared, a fresh one that is."""
    assert end(place.sweep("seed=range(2)"))[0] == 0
    first = place.runs()
    assert place.worker_starts() == 1
    status, printed = end(place.sweep("seed=range(2)"))
    assert (status, place.worker_starts()) == (0, 1)
    assert "nothing to do: 2 runs finished before (force=true does them again)" in printed
    status, printed = end(place.sweep("seed=range(4)", "isolation=fresh"))
    assert (status, place.worker_starts()) == (0, 3)
    assert "2 runs to do, 2 runs finished before" in printed
    second = place.runs()
    assert [run.events for run in second[:2]] == [run.events for run in first]
    assert second[0].pid == second[1].pid
    assert len({run.pid for run in second}) == 3
    check_finished_once(place, 4, 3)
    status, printed = end(place.sweep("seed=range(4)", "force=true"))
    assert (status, place.worker_starts()) == (0, 4)
    assert "4 runs to do" in printed
    assert [run.attempts for run in place.runs()] == [["1"]] * 4
    assert len({run.pid for run in place.runs()} - {run.pid for run in second}) == 1
    check_finished_once(place, 4, 3)


def test_two_commands_at_once(place: Place) -> None:
    """Catches: a run done by both, or waited for longer than its own time-out allows, or that fails for one;
    two MLflow runs for one, a study left open by both."""
    place.suffer({1: "slow", 3: "slow"})
    sweeps = [place.sweep("seed=range(5)", "timeout_s=30") for _ in range(2)]
    for status, printed in map(end, sweeps):
        assert status == 0, printed
    assert [run.attempts for run in place.runs()] == [[]] * 5
    check_finished_once(place, 5, 3)


def test_two_commands_bring_the_same_run_into_mlflow(place: Place) -> None:
    """Catches: two active MLflow runs for one run, where both find that there is none yet."""
    from harness.shell.store import open_store
    from harness.shell.tracking import Tracker

    trackers = [Tracker(open_store(place.results)) for _ in range(2)]
    barrier = threading.Barrier(len(trackers))
    folder = place.results / "runs" / "0"
    folder.mkdir(parents=True)
    job = {"run_id": "0", "study": "both", "config": {}}

    def begin(tracker: Tracker) -> None:
        tracker.study("both")
        for _ in range(5):
            barrier.wait()
            tracker.begin(folder, job)
        barrier.wait()
        tracker.finish_study("both")

    threads = [threading.Thread(target=begin, args=(tracker,)) for tracker in trackers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len([tracked for tracked in place.tracked() if tracked.active]) == 1
    assert [study.status for study in place.tracked("study")] == ["FINISHED"]


def test_a_command_takes_over_from_another(place: Place) -> None:
    """Catches: the death of a worker recorded over the run of the sweep that waited for the folder and did
    it meanwhile."""
    place.suffer({"*": "slow"})
    first, second = (place.sweep("seed=range(2)", "train.epochs=10") for _ in range(2))
    wait_until(lambda: place.worker_starts() == 2 and event_lines(place) >= 3, first)
    time.sleep(0.5)  # for the other worker to wait at the folder, which only matters to what is tested
    os.kill(place.runs()[0].pid, signal.SIGKILL)
    statuses = sorted(end(process)[0] for process in (first, second))
    assert statuses in ([0, 0], [0, 1])  # the second, if the other worker was late
    assert place.runs()[0].attempts == ["1"]
    check_finished_once(place, 2, 10)


def interrupt(process: subprocess.Popen[str]) -> None:
    """What a terminal does at Ctrl-C."""
    os.killpg(process.pid, signal.SIGINT)


@pytest.mark.parametrize(("stop", "expected"), [(interrupt, 130), (subprocess.Popen.terminate, 143)])
def test_a_sweep_that_is_stopped(
    place: Place, stop: Callable[[subprocess.Popen[str]], None], expected: int
) -> None:
    """Catches: a worker that stays, a run without a result or MLflow run without an end, a traceback, another
    exit status, a command that can't go on."""
    place.suffer({1: "slow"})
    sweep = ("seed=range(3)", "train.epochs=15")
    process = place.sweep(*sweep)
    wait_until(lambda: results(place) == 1 and event_lines(place) >= 18, process)
    stop(process)
    status, printed = end(process)
    assert status == expected, printed
    assert "the same command goes on where it stopped" in printed
    assert "Traceback" not in printed
    stopped = place.runs()[1]
    assert (stopped.status, stopped.result["error"]["type"]) == ("killed", "interrupted")
    assert [tracked.status for tracked in place.tracked()] == ["FINISHED", "KILLED"]
    check_consistent(place)
    place.suffer({})
    status, printed = end(place.sweep(*sweep))
    assert (status, "2 runs to do, 1 run finished before" in printed) == (0, True), printed
    check_finished_once(place, 3, 15)


@pytest.mark.slow
def test_a_program_serves_runs_that_differ_in_numbers(place: Place) -> None:
    """Catches: a number that was compiled into the program, so that each value compiles again; a program that
    is not kept from one run to the next."""
    sweep = ("-m", "framework=torch", "execution=compiled", "data=iris", "train.epochs=2", "optimizer=adamw")
    axes = ("optimizer.learning_rate=1e-3,1e-2", "optimizer.weight_decay=0.01,0.1", "seed=0,1")
    status, printed = end(place.start(*sweep, *axes))
    assert status == 0, printed
    timings = [run.result["timing"] for run in sorted(place.runs(), key=lambda run: run.events[0]["time_ms"])]
    assert timings[0]["new_program"] and timings[0]["compilations"] >= 1
    assert [timing["compilations"] for timing in timings[1:]] == [0] * 7
    assert len({run.pid for run in place.runs()}) == 1
