"""evenbench's side of a comparison: the worker's code, paused after each epoch until its next turn.

`harness.worker.train.run` trains the run of a folder as in any sweep, and this module receives its events and
waits after each epoch. It also measures the epoch's time outside of the worker's clock: creating the order,
reading the losses, writing the event. Evaluation on the validation split is excluded, because the bare loops
do not evaluate. If a turn has a minimum duration, it contains several epochs and the reply has their medians.
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
    `turn_s` (minimum duration of a turn)."""
    request = json.loads(arguments)
    turns = Turns()
    evaluating_s = _time_evaluation()
    events: list[Mapping[str, Any]] = []

    def emit(event: Mapping[str, Any]) -> None:
        if event["event"] == "epoch":
            events.append(event)
            whole_s = turns.elapsed_s() - sum(evaluating_s)
            if whole_s < request["turn_s"]:
                return
            of = {key: statistics.median([each[key] for each in events]) for key in ("train_s", "cpu_s")}
            switches = sum(each["switches"] for each in events)
            loss = event["metrics"]["train/loss"]
            turns.report(of["train_s"], whole_s / len(events), of["cpu_s"], switches, loss)
        turns.wait()
        events.clear()
        evaluating_s.clear()

    adapter = import_adapter(request["adapter"], parse(AdapterOptions, request["options"]))
    folder = RunFolder(Path(request["folder"]))
    train.run(folder, Programs(adapter), 0.0, emit)
    # reached only if the run failed: otherwise the parent ends this process earlier
    error = (folder.result() or {}).get("error") or {}
    print(error, file=sys.stderr)
    if error.get("type") == ConfigError.__name__:
        turns.refuse(error["message"])


def _time_evaluation() -> list[float]:
    """Make the worker's evaluation append its seconds to the returned list."""
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
