"""Several child processes that train by turns: what disturbs the machine disturbs all of them alike.

Each side has a process of its own. In one process the two sides would share what a framework keeps for a
process (threads, caches, settings that an adapter makes at import), which is part of what is to be found.
The price is that processes differ by chance (where their memory lies), so a contest is repeated with fresh
ones. All children get the environment that the harness gives its workers.
"""

from __future__ import annotations

import json
import select
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from harness import data
from harness.config import RunConfig
from harness.job import Job, RunFolder
from harness.parse import to_plain
from harness.shell.process import WorkerKey

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 300.0
WARM = 3  # turns of each side that are thrown away
EPOCHS = 100_000  # of a run, more than any contest has turns


@dataclass(frozen=True)
class Epoch:
    """One turn: the training alone, the whole turn (without evaluation), processor time, the mean loss."""

    train_s: float
    whole_s: float
    cpu_s: float
    switches: int
    loss: float


class Child:
    """One side: a Python module of this package, started with arguments."""

    def __init__(self, module: str, arguments: Sequence[str], environment: dict[str, str], log: Path) -> None:
        self.name = f"{module} {arguments[0]}"
        self._log = log
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"tests.bench.{module}", *arguments],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("wb"),
        )

    def go(self) -> None:
        """Give it a turn."""
        assert self._process.stdin
        self._process.stdin.write(b"go\n")
        self._process.stdin.flush()

    def epoch(self) -> Epoch:
        """Wait for what it says about its turn; raises RuntimeError if it died or is stuck."""
        assert self._process.stdout
        ready = select.select([self._process.stdout], [], [], TIMEOUT_S)[0]
        line = self._process.stdout.readline() if ready else b""
        if not line:
            self.close()
            raise RuntimeError(f"{self.name} gave no answer\n{self._log.read_text(errors='replace')[-3000:]}")
        return Epoch(**json.loads(line))

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()


@dataclass(frozen=True)
class Side:
    """What a child runs: the harness, or the bare loop."""

    framework: str
    execution: str
    bare: bool
    settings: tuple[str, ...] = ()

    def start(self, folder: Path, place: int) -> Child:
        """Start it; `folder` holds the data and the runs of a contest, `place` tells the children apart."""
        run = prepared(self, folder / str(place))
        key, log = run.worker, folder / f"{place}.log"
        if self.bare:
            return Child(f"bare_{self.framework}", [self.execution, str(run.data)], key.environment(), log)
        options = {name: getattr(key, name) for name in ("backend", "precision", "threads", "device")}
        asked = {"adapter": key.adapter, "options": options, "folder": str(run.folder)}
        return Child("worker_side", [json.dumps(asked)], key.environment(), log)


@dataclass(frozen=True)
class Prepared:
    """A run of the harness that can start: its folder is made, its data lie in `data`."""

    folder: Path
    data: Path
    steps: int
    worker: WorkerKey


def prepared(side: Side, results: Path) -> Prepared:
    """The run that a side stands for, composed from conf/ as the command composes it."""
    execution = "compiled" if side.execution == "compiled_forward" else side.execution
    overrides = [
        f"framework={side.framework}",
        f"execution={execution}",
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
    return Prepared(folder.path, file, config.plan(dataset).steps, WorkerKey.of(config))


def contest(sides: Sequence[Side], folder: Path, seconds: float, most: int = 400) -> list[list[Epoch]]:
    """Epochs of each side, taken by turns for about `seconds`; the sides' order turns round every time.

    Element i of one list was measured beside element i of the others. Raises RuntimeError if a side fails,
    or does not learn: then the two don't do the same work.
    """
    folder.mkdir(parents=True)
    children: list[Child] = []
    try:
        for place, side in enumerate(sides):
            children.append(side.start(folder, place))
        for child in children:  # import and compile side by side
            child.go()
        for child in children:
            child.epoch()
        taken: list[list[Epoch]] = [[] for _ in children]
        turns, turn = 0, 0
        while turns == 0 or turn < turns:
            for place in range(len(children))[:: -1 if turn % 2 else 1]:
                children[place].go()
                taken[place].append(children[place].epoch())
            turn += 1
            if turn == WARM + 2:
                cycle_s = sum(min(epoch.whole_s for epoch in each[WARM:]) for each in taken)
                turns = WARM + int(np.clip(seconds / cycle_s, 20, most))
    finally:
        for child in children:
            child.close()
    for child, epochs in zip(children, taken, strict=True):
        if not epochs[-1].loss < 0.3:
            raise RuntimeError(f"{child.name} does not learn: its loss is {epochs[-1].loss:g}")
    return [epochs[WARM:] for epochs in taken]


def steps_of_epoch(side: Side, folder: Path) -> int:
    """The steps of an epoch of this side's run; `folder` is to be written in."""
    return prepared(side, folder).steps


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
