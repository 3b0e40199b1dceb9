"""The harness in a benchmark: the worker's own code, held up after each epoch until its next turn.

`harness.worker.train.run` trains the run of a folder as in any sweep. What it emits after an epoch comes
here, and here it waits. The epoch's time outside of the worker's clock is measured too: making the order,
reading the losses, writing the event. Evaluation on the validation part is left out, which the bare loops
don't do. Where a turn is to last some time it goes on with more epochs, and answers with their medians.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.core.adapter import AdapterOptions
from harness.core.machine import statistics
from harness.core.runs.run_folder import RunFolder
from harness.core.validation import ConfigError, parse
from harness.worker import train
from harness.worker.program_cache import Programs
from harness.worker.serve import import_adapter
from harness.worker.training_setup import TrainingSetup
from tests.bench.turns import Turns


def main(arguments: str) -> None:
    """Train. `arguments` is JSON: `adapter` (module), `options` (AdapterOptions), `folder` (of the run),
    `turn_s` (the least that a turn lasts)."""
    asked = json.loads(arguments)
    turns = Turns()
    evaluating_s = _time_evaluation()
    taken: list[Mapping[str, Any]] = []

    def emit(event: Mapping[str, Any]) -> None:
        if event["event"] == "epoch":
            taken.append(event)
            whole_s = turns.elapsed_s() - sum(evaluating_s)
            if whole_s < asked["turn_s"]:
                return
            of = {key: statistics.median([each[key] for each in taken]) for key in ("train_s", "cpu_s")}
            switches = sum(each["switches"] for each in taken)
            loss = event["metrics"]["train/loss"]
            turns.report(of["train_s"], whole_s / len(taken), of["cpu_s"], switches, loss)
        turns.wait()
        taken.clear()
        evaluating_s.clear()

    adapter = import_adapter(asked["adapter"], parse(AdapterOptions, asked["options"]))
    folder = RunFolder(Path(asked["folder"]))
    train.run(folder, Programs(adapter), 0.0, emit)
    # reached where the run failed only: the parent ends us earlier
    error = (folder.result() or {}).get("error") or {}
    print(error, file=sys.stderr)
    if error.get("type") == ConfigError.__name__:
        turns.refuse(error["message"])


def _time_evaluation() -> list[float]:
    """Let the worker's evaluation leave its seconds in the list that is returned."""
    evaluate = TrainingSetup.evaluate
    spent: list[float] = []

    def timed(*arguments: Any) -> dict[str, float]:
        start = time.perf_counter()
        try:
            return evaluate(*arguments)
        finally:
            spent.append(time.perf_counter() - start)

    TrainingSetup.evaluate = timed  # type: ignore[method-assign]
    return spent


if __name__ == "__main__":
    main(sys.argv[1])
