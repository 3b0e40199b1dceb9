"""Overhead of logging: the same run with and without progress bar, MLflow and plots.

    python -m tests.bench.quiet [--json] [--pairs 30] [--epochs 60] [--only torch]

One warm worker trains the same run repeatedly, alternating between two modes. In the first, as in the
command, a session draws a progress bar in a terminal, logs every epoch to MLflow on SQLite and draws the
run's plots. In the second, bare, the worker's events are read and discarded. All logging is flushed before a
bare run. The medians of the runs' step times are compared in pairs A B B A. Both modes use the same process,
so chance differences between processes do not matter.
"""

from __future__ import annotations

import contextlib
import os
import pty
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from rich.console import Console

from harness.core.config.run_config import RunConfig
from harness.core.machine import statistics
from harness.core.machine.statistics import Interval
from harness.core.runs.run_folder import RunFolder
from harness.shell.engines.local import LocalEngine
from harness.shell.reports.progress_bars import BarReporter
from harness.shell.session.session import Session
from tests.bench.overhead import interval, selected
from tests.bench.report import Report, Table, command, plain, say
from tests.support.paths import ROOT

GOAL = 0.01
CASES = (("torch", "eager"), ("keras_jax", "epoch"))  # one driven by Python, one with a single call per epoch


@dataclass(frozen=True)
class Row:
    """Medians of a step in µs with and without logging, and the ratio over the pairs."""

    framework: str
    execution: str
    logged_us: float
    bare_us: float
    ratio: Interval


def measure_quiet(only: str = "", pairs: int = 30, epochs: int = 60) -> Report:
    """Measure all cases; `only` selects frameworks or executions."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="quiet-") as name:
        for framework, execution in CASES:
            if selected(only, framework, execution):
                say(f"{framework} {execution}")
                config = _config(framework, execution, epochs, Path(name, framework))
                rows.append(_compare(config, pairs))
    return Report({"goal": GOAL, "quiet": [plain(row) for row in rows]}, (_table(rows, epochs),))


def _config(framework: str, execution: str, epochs: int, results: Path) -> RunConfig:
    overrides = [
        f"framework={framework}",
        f"execution={execution}",
        f"train.epochs={epochs}",
        f"results_dir={results}",
        "certify=off",
        "force=true",
    ]
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        raw = OmegaConf.to_container(compose("config", overrides), resolve=True)
    return RunConfig.parse(cast(dict[str, Any], raw))


def _compare(config: RunConfig, pairs: int) -> Row:
    logged: list[float] = []
    bare: list[float] = []
    with _terminal() as console, Session(BarReporter(console)) as session:
        runner = _Runner(session, config)
        steps = runner.epochs()[0]["steps"]  # starts worker and store
        for number in range(pairs):
            turns = [runner.logged, runner.bare]
            for turn in turns[:: -1 if number % 2 else 1]:
                (logged if turn == runner.logged else bare).append(turn())
    return Row(
        config.framework.name,
        config.execution,
        1e6 * statistics.median(logged) / steps,
        1e6 * statistics.median(bare) / steps,
        statistics.ratio(logged, bare),
    )


class _Runner:
    """The run in both modes, in the session's worker; each mode returns the median time of its epochs in
    s."""

    def __init__(self, session: Session, config: RunConfig) -> None:
        self._session, self._config, self._engine = session, config, LocalEngine(session.note)

    def epochs(self) -> list[dict[str, Any]]:
        """Execute the run in the session; return its epochs."""
        self._session.execute([self._config], self._engine)
        (self._worker,) = self._engine.ready().values()
        self._tracking = self._session._stores.thread(self._config)
        (self._folder,) = (Path(self._config.results_dir) / "runs").iterdir()
        epochs: list[dict[str, Any]] = (RunFolder(self._folder).result() or {})["epochs"]
        return epochs

    def logged(self) -> float:
        """Run as in the command, while this run, and no earlier one, is logged."""
        self._tracking.flush()
        return statistics.median([epoch["train_s"] for epoch in self.epochs()])

    def bare(self) -> float:
        """Run without logging."""
        self._tracking.flush()
        events = list(self._worker.run(self._folder, True, None))
        return statistics.median([event["train_s"] for event in events if event["event"] == "epoch"])


@contextlib.contextmanager
def _terminal() -> Iterator[Console]:
    """A console on a terminal whose output is read, as by a terminal emulator."""
    ours, theirs = pty.openpty()

    def read() -> None:
        with contextlib.suppress(OSError):  # raised when the other end is closed
            while os.read(ours, 65536):
                pass

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    with os.fdopen(theirs, "w") as file:
        yield Console(file=file, force_terminal=True, width=100)
    reader.join()
    os.close(ours)


def _table(rows: list[Row], epochs: int) -> Table:
    columns = (
        "framework",
        "execution",
        "bare µs/step",
        "with logging, µs/step",
        "ratio [95 %]",
        "pairs",
        "< 1 %",
    )
    cells = [
        (
            row.framework,
            row.execution,
            f"{row.bare_us:.1f}",
            f"{row.logged_us:.1f}",
            interval(row.ratio),
            row.ratio.pairs,
            _verdict(row.ratio),
        )
        for row in rows
    ]
    title = f"The same run with progress bar, MLflow and plots, and without ({epochs} epochs of digits, FNN)"
    return Table(title, columns, tuple(cells))


def _verdict(ratio: Interval) -> str:
    """`yes` if the whole interval lies within the goal."""
    if max(abs(ratio.low - 1), abs(ratio.high - 1)) < GOAL:
        return "yes"
    return "by estimate" if abs(ratio.estimate - 1) < GOAL else "no"


if __name__ == "__main__":
    description = "The same run with and without progress bar, MLflow and plots."
    sys.exit(command(measure_quiet, description, only="", pairs=30, epochs=60))
