"""The extension point for executing runs: on this machine (`local`), on a cluster (`cluster`), or elsewhere.

The session decides *what* to run: it checks and identifies runs, skips finished ones, provides certificates
and matrix limits, and reports to MLflow and the user. An engine decides *where and when*: it owns the slots,
each of which executes one run at a time, and reports events to a `Listener`.

How an engine gets its runs: Hydra's launcher (`hydra/launcher=`) passes its engine and its `should_continue`
to `harness.shell.compose.hydra.execute`, which passes them to `Session.execute`. Without a launcher the
session uses a `LocalEngine`. A launcher for a cluster derives from `EvenbenchLauncher` and sets `engine` in
`setup`, once per command; the same engine executes every portion of a sweep, and the session closes it when
the command ends. A search sets the launcher's `should_continue` before each `launch`, and reads an `Outcome`
from each job's `return_value`.

Requirements for an engine:

- The session calls `check`, `begin`, `ready`, `execute` in this order for each portion, and `close` once.
- The run's folder is `run.folder`, its job `run.job`. The listener's `started` writes `job.json`, so a worker
  may use the folder only after `started` has returned. The events and the result of a worker on another
  machine must be in `run.folder` before `ended` is called.
- `run.job.beside` is the number of other runs that may execute on the same machine at the same time. Set it
  before `started` (`dataclasses.replace`), and use the same `PreparedRun` in all later calls.
- If a worker ends without a result, the engine writes one with `lost_runs.write_result`.
- A run that is repeated after the loss of a node is `started` again, without `ended` in between.
- On KeyboardInterrupt in `execute` (the session turns SIGTERM and SIGHUP into it) the engine ends all running
  runs, records them as `lost_runs.INTERRUPTED`, calls `ended` for each, and raises the interrupt again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from harness.core.config.run_config import RunConfig
from harness.shell.runs.records import PreparedRun
from harness.shell.workers.key import WorkerKey
from harness.shell.workers.process import Worker

Record = Mapping[str, Any]
"""An epoch's event: `epoch`, `metrics`, `train_s`, ... as in `events.jsonl`."""

JobShouldContinue = Callable[[int, Record], bool]
"""Whether a run continues after an epoch, by the index of its configuration among those passed to `execute`
(its job's index in `launch`). Called from any thread, one call at a time."""

ShouldContinue = Callable[[PreparedRun, Record], bool]
"""The same by run, as engines call it."""


class Listener(Protocol):
    """Receives what happens to runs. Calls come from any thread, one at a time, and must return quickly."""

    def started(self, run: PreparedRun, slot: str) -> None:
        """A slot starts the run; creates its folder. `slot` is the slot's name for display."""
        ...

    def event(self, run: PreparedRun, event: Mapping[str, Any]) -> None:
        """A worker's event: `started` (the attempt begins), `epoch`, ..."""
        ...

    def ended(self, run: PreparedRun, result: Mapping[str, Any]) -> None:
        """The run has ended with this result, which is final and in its folder."""
        ...

    def note(self, text: str) -> None:
        """A message for the user that belongs to no result, such as the loss of a node."""
        ...


class Engine(Protocol):
    """Executes runs. Used from the main thread only."""

    def check(self, runs: Sequence[PreparedRun]) -> None:
        """Raise ConfigError for what this engine can't do; `runs` is a whole portion, with finished runs."""
        ...

    def begin(self, runs: Sequence[PreparedRun]) -> None:
        """Start what these runs will need and return at once: workers import while the shell does too."""
        ...

    def ready(self) -> Mapping[WorkerKey, Worker] | None:
        """Wait for what `begin` started; a worker that fails to start is reported by the runs that need it.

        Returns the warm workers of this machine, which can measure its matrix limit, or None if the runs are
        executed elsewhere.
        """
        ...

    def execute(
        self, runs: Sequence[PreparedRun], listener: Listener, should_continue: ShouldContinue | None
    ) -> None:
        """Execute all runs; each has `ended` exactly once when this returns.

        With `should_continue`, a worker waits after each `epoch` event for `{"task": "continue"}` or
        `{"task": "stop"}`.
        """
        ...

    def max_parallel_runs(self, config: RunConfig) -> int:
        """How many runs like this one can execute at a time, as far as known before they start.

        A search draws that many trials at once. Raises ConfigError.
        """
        ...

    def close(self, kill: bool) -> None:
        """End all workers, with `kill` by force; may be called at any time."""
        ...
