"""Who carries out runs: this machine's workers (`local`), or those of a cluster (`cluster`).

The session decides *what* is to be done: it checks and identifies runs, leaves out those that are finished,
has certificates and limits made, speaks to MLflow and to people. An engine decides *where and when*: it owns
the slots in which runs go on, a process each at a time, and tells a `Listener` what happens.

How a command gets its engine: Hydra's launcher (`hydra/launcher=`) hands it to `task.execute(composed,
engine, judge)`, which hands it on to `Session.execute(configs, engine, judge)`; without one the session has a
`LocalEngine`. A launcher that makes an engine makes it once a command (in `setup`) and passes the same one
with every portion of a sweep; the session closes it when the command ends. A launcher of a cluster derives
from `EvenbenchLauncher` and sets its `engine` in `setup`; a search sets `launcher.judge` before it calls
`launcher.launch`, and finds an `Outcome` in each job's `return_value`.

What an engine has to see to:

- It calls `check`, `begin`, `ready`, `execute` in this order for each portion, `close` once.
- A run's folder is `run.folder`, its job `run.job`; the listener's `started` has written `job.json` there by
  the time it returns, so a worker can be handed the folder after that. What a worker on another machine left
  must be in `run.folder` (its events, its result) before `ended` is called.
- `run.job.beside` says how many other runs may go on on the machine at the same time: replace it before
  `started` (`dataclasses.replace`), and use the same `PreparedRun` in all calls from there on.
- A worker that dies leaves no result: `deaths.record` writes it.
- A run that is tried once more (a node died) is `started` again, without `ended` in between.
- On KeyboardInterrupt in `execute` (the session turns SIGTERM and SIGHUP into it) all runs in progress are
  ended and recorded as `deaths.INTERRUPTED`, `ended` is called for each, and the interrupt is raised.
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
"""Whether a run is to go on after an epoch, asked by the place of its configuration in what was asked for
(the job's number among those that `launch` was given). One call at a time, from any thread."""

ShouldContinue = Callable[[PreparedRun, Record], bool]
"""The same, as an engine asks: by the run."""


class Listener(Protocol):
    """Hears what becomes of runs. Calls come one at a time, from any thread, and must not take long."""

    def started(self, run: PreparedRun, slot: str) -> None:
        """A slot (a name for people, the same for all runs in it) takes the run up: its folder is made."""
        ...

    def event(self, run: PreparedRun, event: Mapping[str, Any]) -> None:
        """A worker's event: `started` (the attempt begins), `epoch`, ..."""
        ...

    def ended(self, run: PreparedRun, result: Mapping[str, Any]) -> None:
        """The run has this result (that of its folder), which stays."""
        ...

    def note(self, text: str) -> None:
        """Something to know that belongs to no run, or not to its result: a node that was lost, say."""
        ...


class Engine(Protocol):
    """Carries out runs. Used from the main thread alone."""

    def check(self, runs: Sequence[PreparedRun]) -> None:
        """Raise ConfigError for what can't be done here. `runs` are all of a portion, finished ones too."""
        ...

    def begin(self, runs: Sequence[PreparedRun]) -> None:
        """Start what these runs will need, and return at once: workers import while the shell does."""
        ...

    def ready(self) -> Mapping[WorkerKey, Worker] | None:
        """Wait for what `begin` started; a worker that did not start is the affair of the runs that need it.

        The warm workers of this machine, which may be asked how fast it multiplies matrices; None where the
        runs go elsewhere, so that it does not matter.
        """
        ...

    def execute(
        self, runs: Sequence[PreparedRun], listener: Listener, verdict: ShouldContinue | None
    ) -> None:
        """Do all runs; each is `ended` once when this returns.

        With a verdict, runs are told to be judged, and their worker waits after each `epoch` event for
        `{"task": "go"}` or `{"task": "stop"}`.
        """
        ...

    def together(self, config: RunConfig) -> int:
        """How many runs like this one can go on at a time, as far as is known before they start, which is how
        many trials a search asks for at once. Raises ConfigError."""
        ...

    def close(self, kill: bool) -> None:
        """End all workers, by force if need be; may be called in the middle of anything."""
        ...
