"""Several child processes that train by turns: what disturbs the machine disturbs all of them alike.

Each side has a process of its own. In one process the two sides would share what a framework keeps for a
process (threads, caches, settings that an adapter makes at import), which is part of what is to be found.
The price is that processes differ by chance (where their memory lies), so a contest is repeated with fresh
ones. All children get the environment that the harness gives its workers.
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
WARM = 4  # turns of each side that are thrown away
ALONE = 0.95  # of a process' work, from which share on one thread is taken to do it all
LEARNT = 0.5  # of the first turn's loss: who trains is below that in the end
EPOCHS = 100_000  # of a run, more than any contest has turns


@dataclass(frozen=True)
class Epoch:
    """One turn, or of one of several epochs the medians: the training alone, the whole epoch (without
    evaluation), processor time, the mean loss.

    `parameters` counts the trained numbers of a network that the child made itself.
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
        """Give it a turn."""
        assert self._process.stdin
        self._process.stdin.write(b"go\n")
        self._process.stdin.flush()

    def epoch(self) -> Epoch | None:
        """Wait for what it says of its turn: None if the framework does not do what it was asked for.

        Raises RuntimeError if it died or is stuck.
        """
        said = self._answer()
        if "refused" in said:
            self.close()
            return None
        return Epoch(**said)

    def limit(self) -> float:
        """Give a turn to one that is `matrix_limit`, and wait for the GFLOP/s that it says."""
        self.go()
        return float(self._answer()["gflops"])

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        ready = select.select([self._process.stdout], [], [], TIMEOUT_S)[0]
        line = self._process.stdout.readline() if ready else b""
        if not line:
            self.close()
            raise RuntimeError(f"{self.name} gave no answer\n{self._log.read_text(errors='replace')[-3000:]}")
        said: dict[str, Any] = json.loads(line)
        return said

    def pin(self, core: int) -> None:
        """Have all of its threads run on one core from now on, and those that they start."""
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            os.sched_setaffinity(int(task.name), {core})

    def worked_ns(self) -> dict[int, int]:
        """How long each of its threads had a core; empty where the system doesn't say, or it has ended."""
        found = {}
        for task in Path(f"/proc/{self.pid}/task").glob("*/schedstat"):
            with contextlib.suppress(OSError):  # a thread that has just ended
                found[int(task.parent.name)] = int(task.read_text().split()[0])
        return found

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()


@dataclass(frozen=True)
class Side:
    """What a child runs: the harness, or a script of its own, which is the module `script` of this package.

    `settings` are more overrides of the run that the harness does, or that the script gets the data of.
    """

    framework: str
    execution: str
    script: str = ""
    model: str = "fnn"
    settings: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """What it is called in a table."""
        return f"{self.framework} {self.execution}"

    def start(self, run: Prepared, log: Path, turn_s: float = 0.0) -> Child:
        """Start it for a run that can start; a turn of the harness lasts at least `turn_s`."""
        key = run.worker
        if self.script:
            return Child(self.script, [self.model, self.execution, str(run.data)], key.environment(), log)
        options = {name: getattr(key, name) for name in ("backend", "precision", "threads", "device")}
        asked = {"adapter": key.adapter, "options": options, "folder": str(run.folder), "turn_s": turn_s}
        return Child("worker_side", [json.dumps(asked)], key.environment(), log)


@dataclass(frozen=True)
class Prepared:
    """A run of the harness that can start: its folder is made, its data lie in `data`."""

    folder: Path
    data: Path
    plan: Plan
    worker: WorkerKey


def prepared(side: Side, results: Path) -> Prepared:
    """The run that a side stands for, composed from conf/ as the command composes it."""
    execution = [] if side.script else [f"execution={side.execution}"]  # a script has its own
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
    """The loop without the harness."""
    return Side(framework, execution, f"bare_{framework}", model, settings)


@dataclass(frozen=True)
class Contest:
    """What came of it: the epochs of each side, and what they trained.

    Element i of one side's epochs was measured beside element i of the others, and of `limits`: the matrix
    limit in GFLOP/s, where it took turns too. A side that its framework refuses has no epochs. `one_core`:
    all sides shared one.
    """

    epochs: list[list[Epoch]]
    plan: Plan
    limits: list[float] = field(default_factory=list)
    one_core: bool = False

    @property
    def steps(self) -> int:
        """How many steps an epoch has."""
        return self.plan.steps

    @property
    def flops(self) -> int:
        """Floating-point operations of a step: forward, and twice that for backward, of matrix products."""
        return 3 * self.plan.network.flops() * self.plan.batch_size


def contest(
    sides: Sequence[Side],
    folder: Path,
    seconds: float,
    least: int = 20,
    most: int = 400,
    learns: bool = True,
    turn_s: float = 0.0,
    limit: bool = False,
    one_core: bool | None = False,
) -> Contest:
    """Epochs of each side, taken by turns for about `seconds`, `least` to `most` turns each; the sides' order
    turns round every time. A turn is one epoch, or as many as fill `turn_s`: after others had the processor,
    the first epoch finds its caches empty, which is a part of what takes turns in earnest and not of what
    trains without a break. (Scripts always do one.) With `limit`, so does the matrix limit of one thread.
    With `one_core`, all sides share one once they are warm, where the system can do that; with None only if
    each of them computes in one thread. Two threads of a side on one core would change places as the
    scheduler likes, once in 32 steps or at every step, by which an epoch takes a tenth longer.

    Raises RuntimeError if a side fails, has another number of parameters than the spec, or does not learn:
    then they don't do the same work. `learns=False` is for data of which there is little to learn so soon.
    """
    folder.mkdir(parents=True)
    runs = [prepared(side, folder / str(place)) for place, side in enumerate(sides)]
    children: list[Child] = []
    gauge: Child | None = None
    limits: list[float] = []
    try:
        for place, (side, run) in enumerate(zip(sides, runs, strict=True)):
            children.append(side.start(run, folder / f"{place}.log", turn_s))
        if limit:
            gauge = Child("matrix_limit", [str(turn_s)], runs[0].worker.environment(), folder / "limit.log")
        for child in children:  # import and compile side by side
            child.go()
        firsts = [child.epoch() for child in children]
        taking = [place for place, first in enumerate(firsts) if first is not None]
        taken: list[list[Epoch]] = [[] for _ in children]
        turns, turn = 0, 0
        worked_ns = [child.worked_ns() for child in children]
        while turns == 0 or turn < turns:
            for place in taking[:: -1 if turn % 2 else 1]:
                children[place].go()
                epoch = children[place].epoch()
                assert epoch is not None
                taken[place].append(epoch)
            if gauge is not None:
                limits.append(gauge.limit())
            turn += 1
            if turn == WARM - 1:  # one more is thrown away after they moved
                if one_core is None:
                    one_core = all(_alone(worked_ns[place], children[place].worked_ns()) for place in taking)
                if one_core := bool(one_core and hasattr(os, "sched_setaffinity")):
                    for place in taking:
                        children[place].pin(max(os.sched_getaffinity(0)))
            if turn == WARM + 2:
                quickest = (min(epoch.whole_s for epoch in taken[place][WARM:]) for place in taking)
                cycle_s = sum(max(turn_s, whole_s) for whole_s in quickest)
                turns = WARM + int(np.clip(seconds / cycle_s, least, most))
    finally:
        for child in [*children, *([gauge] if gauge is not None else [])]:
            child.close()
    for child, run, first, epochs in zip(children, runs, firsts, taken, strict=True):
        if first is not None:
            _check(child.name, run.plan, first)
            if learns and not epochs[-1].loss < LEARNT * first.loss:
                change = f"{first.loss:g} to {epochs[-1].loss:g}"
                raise RuntimeError(f"{child.name} does not learn: its loss went from {change}")
    return Contest([epochs[WARM:] for epochs in taken], runs[0].plan, limits[WARM:], bool(one_core))


def _alone(before_ns: Mapping[int, int], after_ns: Mapping[int, int]) -> bool:
    """Whether one thread did the work between two readings; false where the system doesn't say."""
    worked_ns = [after - before_ns.get(thread, 0) for thread, after in after_ns.items()]
    return sum(worked_ns) > 0 and max(worked_ns) >= ALONE * sum(worked_ns)


def _check(name: str, plan: Plan, first: Epoch) -> None:
    """Whether a side's own network is as large as the spec's."""
    has, spec = first.parameters, plan.network.size()
    if has and has != spec:
        raise RuntimeError(f"{name} trains {has} parameters, the spec has {spec}")


def train_s(epochs: Sequence[Epoch]) -> list[float]:
    """The times of the training alone."""
    return [epoch.train_s for epoch in epochs]


def cpu_s(epochs: Sequence[Epoch]) -> list[float]:
    """The processor's times of the training alone."""
    return [epoch.cpu_s for epoch in epochs]


def whole_s(epochs: Sequence[Epoch]) -> list[float]:
    """The times of whole turns."""
    return [epoch.whole_s for epoch in epochs]


def flat(rounds: Sequence[Sequence[Any]]) -> list[Any]:
    """The rounds after one another."""
    return [value for each in rounds for value in each]
