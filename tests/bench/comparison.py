"""Compare several child processes that train in turns, so that other load on the machine affects all alike.

Each side has its own process. In one process, two sides would share per-process state of a framework
(threads, caches, settings that an adapter makes at import), which is part of what is compared. The price is
that processes differ by chance, for example by their memory layout, so comparisons are repeated with new
processes. All children get the environment of evenbench's workers.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from harness.core.adapter import Plan
from harness.core.config.run_config import RunConfig
from harness.core.data import dataset as data
from harness.core.runs.run_folder import Job, RunFolder
from harness.core.validation import to_plain
from harness.shell.workers.key import WorkerKey
from tests.support.paths import ROOT

TIMEOUT_S = 300.0
WARM = 4  # warm-up turns of each side, which are discarded
ALONE = 0.95  # share of a process' work from which on one thread counts as doing all of it
LEARNED = 0.5  # share of the first turn's loss: a side that trains ends below it
EPOCHS = 100_000  # of a run, more than any comparison has turns


@dataclass(frozen=True)
class Epoch:
    """One turn, or medians over its epochs: time of the training alone and of the whole epoch (without
    evaluation), processor time, mean loss.

    `parameters` is the number of trained parameters of a network that the child built itself.
    """

    train_s: float
    whole_s: float
    cpu_s: float
    switches: int
    loss: float
    parameters: int


class Child:
    """One side: a Python module of this package, started with arguments."""

    def __init__(self, module: str, arguments: Sequence[str], environment: dict[str, str], log: Path) -> None:
        self.name = " ".join([module, *arguments[:2]])
        self._log = log
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"tests.bench.{module}", *arguments],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("wb"),
        )
        self.pid = self._process.pid

    def go(self) -> None:
        """Start a turn."""
        assert self._process.stdin
        self._process.stdin.write(b"go\n")
        self._process.stdin.flush()

    def epoch(self) -> Epoch | None:
        """Wait for the report of a turn; None if the framework refuses the execution.

        Raises RuntimeError if the child died or hangs.
        """
        reply = self._reply()
        if "refused" in reply:
            self.close()
            return None
        return Epoch(**reply)

    def limit(self) -> float:
        """Start a turn of `matrix_limit` and wait for its GFLOP/s."""
        self.go()
        return float(self._reply()["gflops"])

    def _reply(self) -> dict[str, Any]:
        assert self._process.stdout
        ready = select.select([self._process.stdout], [], [], TIMEOUT_S)[0]
        line = self._process.stdout.readline() if ready else b""
        if not line:
            self.close()
            raise RuntimeError(f"{self.name} sent no reply\n{self._log.read_text(errors='replace')[-3000:]}")
        reply: dict[str, Any] = json.loads(line)
        return reply

    def pin(self, core: int) -> None:
        """Run all its threads, and those that they start, on one core from now on."""
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            os.sched_setaffinity(int(task.name), {core})

    def worked_ns(self) -> dict[int, int]:
        """Time in ns that each of its threads had a core; empty if the system does not tell or the child has
        ended."""
        worked = {}
        for task in Path(f"/proc/{self.pid}/task").glob("*/schedstat"):
            with contextlib.suppress(OSError):  # a thread that has just ended
                worked[int(task.parent.name)] = int(task.read_text().split()[0])
        return worked

    def close(self) -> None:
        """End the child."""
        self._process.kill()
        self._process.communicate()


@dataclass(frozen=True)
class Side:
    """What a child runs: evenbench, or the module `script` of this package.

    `settings` are more overrides of the run that evenbench executes or whose data the script uses.
    """

    framework: str
    execution: str
    script: str = ""
    model: str = "fnn"
    settings: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """Its name in a table."""
        return f"{self.framework} {self.execution}"

    def start(self, run: Prepared, log: Path, turn_s: float = 0.0) -> Child:
        """Start the side for a prepared run; a turn of evenbench lasts at least `turn_s`."""
        key = run.worker
        if self.script:
            return Child(self.script, [self.model, self.execution, str(run.data)], key.environment(), log)
        options = {name: getattr(key, name) for name in ("backend", "precision", "threads", "device")}
        request = {"adapter": key.adapter, "options": options, "folder": str(run.folder), "turn_s": turn_s}
        return Child("worker_side", [json.dumps(request)], key.environment(), log)


@dataclass(frozen=True)
class Prepared:
    """A prepared run of evenbench: its folder exists, its data are in `data`."""

    folder: Path
    data: Path
    plan: Plan
    worker: WorkerKey


def prepared(side: Side, results: Path) -> Prepared:
    """The run of a side, composed from conf/ like the command."""
    execution = [] if side.script else [f"execution={side.execution}"]  # a script chooses its own
    overrides = [
        f"model={side.model}",
        f"framework={side.framework}",
        *execution,
        f"train.epochs={EPOCHS}",
        f"results_dir={results}",
        *side.settings,
    ]
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        raw = OmegaConf.to_container(compose("config", overrides), resolve=True)
    config = RunConfig.parse(cast(dict[str, Any], raw))
    dataset = data.load(config.data)
    file = results / "data" / "train.npz"
    file.parent.mkdir(parents=True)
    data.save(dataset, file)
    folder = RunFolder(results / "runs" / "run")
    folder.write_job(to_plain(Job("run", config.study, config.to_plain(), "data/train.npz")))
    return Prepared(folder.path, file, config.plan(config.model.view(dataset)), WorkerKey.of(config))


def bare(framework: str, execution: str, model: str = "fnn", settings: tuple[str, ...] = ()) -> Side:
    """The loop without evenbench."""
    return Side(framework, execution, f"bare_{framework}", model, settings)


@dataclass(frozen=True)
class TurnResults:
    """The result: the epochs of each side, and their plan.

    Element i of a side's epochs was measured next to element i of the others and of `limits`, the matrix
    limit in GFLOP/s, if that was measured too. A side that its framework refuses has no epochs. `one_core`:
    all sides shared a core.
    """

    epochs: list[list[Epoch]]
    plan: Plan
    limits: list[float] = field(default_factory=list)
    one_core: bool = False

    @property
    def steps(self) -> int:
        """Number of steps per epoch."""
        return self.plan.steps

    @property
    def flops(self) -> int:
        """Floating-point operations of a step's matrix products: forward, and twice that for backward."""
        return 3 * self.plan.network.flops() * self.plan.batch_size


def measure_in_turns(
    sides: Sequence[Side],
    folder: Path,
    seconds: float,
    least: int = 20,
    most: int = 400,
    learns: bool = True,
    turn_s: float = 0.0,
    limit: bool = False,
    one_core: bool | None = False,
) -> TurnResults:
    """Measure epochs of each side in turns for about `seconds`, with `least` to `most` turns each, reversing
    the order of the sides every time. A turn is one epoch, or as many as fill `turn_s`: the first epoch after
    other processes ran finds its caches empty, unlike the epochs of an uninterrupted training. (Scripts
    always do one.) With `limit`, the matrix limit of one thread is measured in turns too. With `one_core`,
    all sides share one core after warm-up, if the system supports that; with None, only if each side computes
    in one thread. The scheduler would switch two threads of a side on one core once in 32 steps or at every
    step, which makes an epoch a tenth longer.

    Raises RuntimeError if a side fails, has another number of parameters than the spec, or does not learn,
    because then the sides do not do the same work. `learns=False` is for data that cannot be learned so soon.
    """
    folder.mkdir(parents=True)
    runs = [prepared(side, folder / str(index)) for index, side in enumerate(sides)]
    children: list[Child] = []
    probe: Child | None = None
    limits: list[float] = []
    try:
        for index, (side, run) in enumerate(zip(sides, runs, strict=True)):
            children.append(side.start(run, folder / f"{index}.log", turn_s))
        if limit:
            probe = Child("matrix_limit", [str(turn_s)], runs[0].worker.environment(), folder / "limit.log")
        for child in children:  # import and compile in parallel
            child.go()
        firsts = [child.epoch() for child in children]
        active = [index for index, first in enumerate(firsts) if first is not None]
        measured: list[list[Epoch]] = [[] for _ in children]
        turns, turn = 0, 0
        worked_ns = [child.worked_ns() for child in children]
        while turns == 0 or turn < turns:
            for index in active[:: -1 if turn % 2 else 1]:
                children[index].go()
                epoch = children[index].epoch()
                assert epoch is not None
                measured[index].append(epoch)
            if probe is not None:
                limits.append(probe.limit())
            turn += 1
            if turn == WARM - 1:  # one more is discarded after they moved
                if one_core is None:
                    one_core = all(_alone(worked_ns[index], children[index].worked_ns()) for index in active)
                if one_core := bool(one_core and hasattr(os, "sched_setaffinity")):
                    for index in active:
                        children[index].pin(max(os.sched_getaffinity(0)))
            if turn == WARM + 2:
                quickest = (min(epoch.whole_s for epoch in measured[index][WARM:]) for index in active)
                cycle_s = sum(max(turn_s, whole_s) for whole_s in quickest)
                turns = WARM + int(np.clip(seconds / cycle_s, least, most))
    finally:
        for child in [*children, *([probe] if probe is not None else [])]:
            child.close()
    for child, run, first, epochs in zip(children, runs, firsts, measured, strict=True):
        if first is not None:
            _check(child.name, run.plan, first)
            if learns and not epochs[-1].loss < LEARNED * first.loss:
                change = f"{first.loss:g} to {epochs[-1].loss:g}"
                raise RuntimeError(f"{child.name} does not learn: its loss went from {change}")
    return TurnResults([epochs[WARM:] for epochs in measured], runs[0].plan, limits[WARM:], bool(one_core))


def _alone(before_ns: Mapping[int, int], after_ns: Mapping[int, int]) -> bool:
    """Whether one thread did the work between two readings; false if the system does not tell."""
    worked_ns = [after - before_ns.get(thread, 0) for thread, after in after_ns.items()]
    return sum(worked_ns) > 0 and max(worked_ns) >= ALONE * sum(worked_ns)


def _check(name: str, plan: Plan, first: Epoch) -> None:
    """Check that a side's own network is as large as the spec's."""
    has, spec = first.parameters, plan.network.size()
    if has and has != spec:
        raise RuntimeError(f"{name} trains {has} parameters, the spec has {spec}")


def train_s(epochs: Sequence[Epoch]) -> list[float]:
    """Times of the training alone."""
    return [epoch.train_s for epoch in epochs]


def cpu_s(epochs: Sequence[Epoch]) -> list[float]:
    """Processor times of the training alone."""
    return [epoch.cpu_s for epoch in epochs]


def whole_s(epochs: Sequence[Epoch]) -> list[float]:
    """Times of whole turns."""
    return [epoch.whole_s for epoch in epochs]


def flat(rounds: Sequence[Sequence[Any]]) -> list[Any]:
    """The values of all rounds in order."""
    return [value for each in rounds for value in each]
