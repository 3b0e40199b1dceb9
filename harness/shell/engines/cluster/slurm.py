"""Places as Slurm jobs: each serves runs through a shared folder until there are no more.

A job for each run would import the framework anew for each, and fill the queue. Here `jobs` of them take
turns, which also is the cap. Jobs are submitted by submitit, and that is all that it does: its own way to
wait for results asks `sacct`, which fails where no accounting is set up, and then waits for ever. What a job
has to say, and that it lives, is read from its mailbox; whether it is queued or running says `squeue`.
"""

from __future__ import annotations

import contextlib
import os
import queue
import secrets
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from harness.core.storage.atomic import replacing
from harness.core.validation import ConfigError, Mistake
from harness.shell.engines.cluster.mailbox import POLL_S, Mailbox, SilenceError
from harness.shell.engines.cluster.node import NodeAgent, about
from harness.shell.engines.cluster.options import KEY, SlurmOptions, require
from harness.shell.engines.cluster.protocol import LostError, Need
from harness.shell.engines.slots import differing
from harness.shell.runs.records import PreparedRun

LOOK_S = 5.0  # between two questions to Slurm about a job
END_TIMEOUT_S = 5.0
LIVE = ("PENDING", "CONFIGURING", "RUNNING", "SUSPENDED", "RESIZING", "SIGNALING")
COMMANDS = ("sbatch", "squeue", "scancel")


def serve(folder: str, silence_s: float) -> None:
    """What a job does: the runs that it is told of, until it is told to end or hears nothing any more."""
    path = Path(folder)
    for number in (signal.SIGTERM, signal.SIGINT):  # submitit ignores the first
        signal.signal(number, _leave)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # by which submitit asks for a checkpoint of its own kind
    post = NodeAgent()
    mailbox = Mailbox(path / "told.jsonl", path / "said.jsonl", silence_s)
    orders: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(mailbox, post, orders), daemon=True).start()
    mailbox.send({"event": "here", **about()})
    try:
        while True:
            told = orders.get()
            if told["task"] == "warm":
                post.warm(told["job"])
                mailbox.send({"event": "ended"})
                continue
            for name in post.lacks(told["files"]):
                post.put(name, (path.parent / "files" / name).read_bytes())
            for message in post.run(told["order"]):
                if message["event"] == "file":
                    (path / message["name"]).write_bytes(message["content"])
                    message = {"event": "file", "name": message["name"]}
                mailbox.send(message)
    finally:
        post.close()


def _listen(mailbox: Mailbox, post: NodeAgent, orders: queue.SimpleQueue[dict[str, Any]]) -> None:
    try:
        while True:
            told = mailbox.receive()
            if told is None:
                time.sleep(POLL_S)
            elif told["task"] == "judge":
                post.judge(told["go"])
            elif told["task"] == "end":
                break
            else:
                orders.put(told)
    except SilenceError:
        pass  # the parent is gone, and nobody would take what comes of it
    finally:
        post.close()
        os._exit(0)


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


class SlurmSlot:
    """See `harness.shell.engines.cluster.protocol.RemoteSlot`."""

    def __init__(self, cluster: SlurmCluster, job: Any, folder: Path) -> None:
        self.name = f"job {job.job_id}"
        self.host = ""
        self._cluster, self._job, self._folder = cluster, job, folder
        self._mailbox = Mailbox(folder / "said.jsonl", folder / "told.jsonl", None)
        self._looked = time.monotonic()
        self.closed = False

    @property
    def beside(self) -> int:
        """How many other jobs of ours are on the same machine by now."""
        return self._cluster.on(self.host) - 1

    def arrive(self, give_up: Callable[[], bool], silence_s: float) -> bool:
        """Wait until the job runs; False when `give_up` says so first. Raises LostError."""
        while (said := self._next(wait=False)) is None:
            if give_up():
                return False
            time.sleep(POLL_S)
        self.host = said["host"]
        self.name = f"{said['host']} (job {self._job.job_id})"
        self._mailbox.silence_s = silence_s
        return True

    def warm(self, job: Mapping[str, Any]) -> None:
        """See `Place`."""
        self._mailbox.send({"task": "warm", "job": job})
        self._next()

    def run(self, order: Mapping[str, Any], files: Mapping[str, Path]) -> Iterator[Mapping[str, Any]]:
        """See `Place`."""
        for name, path in files.items():
            _share(path, self._folder.parent / "files" / name, anew=not name.startswith("data/"))
        self._mailbox.send({"task": "run", "order": order, "files": list(files)})
        while (said := self._next()) is not None:
            if said["event"] == "file":
                path = self._folder / Path(said["name"]).name
                said["content"] = path.read_bytes()
            yield said

    def judge(self, go: bool) -> None:
        """See `Place`."""
        self._mailbox.send({"task": "judge", "go": go})

    def close(self, kill: bool) -> None:
        """See `Place`. A job that does not end by itself is cancelled."""
        if self.closed:
            return
        self.closed = True
        with contextlib.suppress(OSError):
            self._mailbox.send({"task": "end"})
        self._mailbox.close()
        deadline = time.monotonic() + (0.0 if kill else END_TIMEOUT_S)
        while not self._cluster.gone(self._job) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        self._cluster.cancel(self._job)

    def _next(self, wait: bool = True) -> dict[str, Any] | None:
        """What the job says next; None if it has said nothing and we don't wait. Raises LostError."""
        while True:
            if self.closed:
                raise LostError("it was given back")
            try:
                said = self._mailbox.receive()
            except SilenceError as error:
                raise LostError(str(error)) from error
            if said is not None or not wait:
                self._look()
                return said
            self._look()
            time.sleep(POLL_S)

    def _look(self) -> None:
        """Raise LostError where the job has ended."""
        if time.monotonic() - self._looked >= LOOK_S:
            self._looked = time.monotonic()
            if self._cluster.gone(self._job):
                raise LostError(f"its job has ended{_log(self._job)}")


class SlurmCluster:
    """See `harness.shell.engines.cluster.protocol.Cluster`."""

    settle_s = 10.0
    wait_s = 0.0  # whoever is not there yet is in the queue

    def __init__(self, options: SlurmOptions) -> None:
        self._options = options
        self._need = Need(1, False)
        self._folder: Path | None = None
        self._places: list[SlurmSlot] = []
        self._submitting = threading.Lock()  # submitit keeps state in its executors

    def check(self, runs: Sequence[PreparedRun]) -> None:
        """Raise ConfigError where a program is missing, or jobs would disturb each other's speeds."""
        require("submitit", "slurm")
        options, mistakes = self._options, []
        missing = [name for name in COMMANDS if options.cluster == "slurm" and shutil.which(name) is None]
        if missing:
            problem = f"there is no {', '.join(missing)} here: this machine belongs to no Slurm cluster"
            mistakes.append(Mistake("hydra/launcher", problem, f"{KEY}.cluster=local to try it without"))
        if any(run.config.workers > 1 for run in runs):
            problem = "it is jobs that go on at a time"
            mistakes.append(Mistake("workers", problem, f"workers=1 {KEY}.jobs=<number>"))
        varied = differing(runs)
        alone = any(run.config.timings == "alone" for run in runs)
        if varied and alone and options.jobs > 1 and not options.exclusive:
            problem = f"the runs differ in {', '.join(varied)}, and {options.jobs} jobs may share a node"
            advice = f"{KEY}.exclusive=true (nodes of their own); {KEY}.jobs=1; or timings=shared"
            mistakes.append(Mistake(f"{KEY}.jobs", f"{problem}: they would disturb the speeds", advice))
        if mistakes:
            raise ConfigError(mistakes)

    def connect(self, need: Need, results_dir: Path) -> None:
        """Make the folder that is shared with the jobs; raises ConfigError where that can't be."""
        self._need = need
        if self._folder is None:
            parent = Path(self._options.folder or results_dir / "slurm").resolve()
            folder = parent / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
            try:
                folder.mkdir(parents=True)
            except OSError as error:
                problem = f"{str(parent)!r} can't be written to: {error.strerror}"
                raise ConfigError(
                    [Mistake(f"{KEY}.folder", problem, "a folder that the nodes see")]
                ) from error
            self._folder = folder

    def sites(self) -> list[str]:
        """One for each job that may go on."""
        return [f"job {number}" for number in range(1, self._options.jobs + 1)]

    def open(self, site: str, give_up: Callable[[], bool]) -> SlurmSlot | None:
        """See `Cluster`."""
        assert self._folder is not None
        folder = self._folder / secrets.token_hex(4)
        folder.mkdir()
        place = SlurmSlot(self, self._submit(folder), folder)
        self._places.append(place)
        try:
            if place.arrive(give_up, self._options.silence_s):
                return place
        except BaseException:
            place.close(kill=True)
            raise
        place.close(kill=True)
        return None

    def on(self, host: str) -> int:
        """How many jobs are on a machine."""
        return sum(place.host == host and not place.closed for place in self._places)

    def gone(self, job: Any) -> bool:
        """Whether a job has ended."""
        if self._options.cluster == "local":
            return bool(job.done())
        try:
            asked = ["squeue", "--noheader", "--jobs", str(job.job_id), "--format", "%T"]
            said = subprocess.run(asked, capture_output=True, text=True, timeout=60)
        except subprocess.TimeoutExpired:
            return False
        if said.returncode:
            return "Invalid job id" in said.stderr  # forgotten; anything else says nothing about the job
        return said.stdout.strip() not in LIVE

    def cancel(self, job: Any) -> None:
        """End a job that has not ended."""
        if self.gone(job):
            return
        if self._options.cluster == "local":
            os.kill(int(job.job_id), signal.SIGTERM)  # submitit sends SIGINT, which it doesn't get
        else:
            job.cancel(check=False)

    def close(self, kill: bool) -> None:
        """Remove the folder, unless a job left something there to be read."""
        for place in self._places:
            place.close(kill=True)
        if self._folder is not None and not kill:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._folder = None

    def _submit(self, folder: Path) -> Any:
        import submitit

        options, need = self._options, self._need
        with self._submitting:
            if options.cluster == "local":
                executor: Any = submitit.LocalExecutor(folder=folder)
                executor.update_parameters(
                    timeout_min=options.time_minutes,
                    gpus_per_node=int(need.gpu),
                    setup=list(options.setup),
                )
            else:
                executor = submitit.SlurmExecutor(folder=folder)
                executor.update_parameters(**parameters(options, need))
            # Ctrl-C is ours alone: a process begins with what its parent's thread has blocked
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                return executor.submit(serve, str(folder), options.silence_s)
            except (submitit.core.utils.FailedJobError, OSError) as error:
                text = " ".join(str(error).split())
                raise LostError(f"the job was not taken: {text[:300]}") from error
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)


def parameters(options: SlurmOptions, need: Need) -> dict[str, Any]:
    """What sbatch is told of a job, as submitit takes it."""
    chosen = {
        "partition": options.partition,
        "account": options.account,
        "qos": options.qos,
        "mem": None if options.memory_gb is None else f"{round(options.memory_gb * 1024)}M",
        "exclusive": options.exclusive or None,
        "gpus_per_node": 1 if need.gpu else None,
        "setup": list(options.setup) or None,
    }
    return {
        "job_name": "evenbench",
        "time": options.time_minutes,
        "ntasks_per_node": 1,
        "cpus_per_task": need.threads,
        # a job that Slurm starts a second time would find its mailbox full of what was
        "additional_parameters": {"no_requeue": True, **options.parameters},
        **{key: value for key, value in chosen.items() if value is not None},
    }


def _share(path: Path, target: Path, anew: bool) -> None:
    """Put a file where jobs find it."""
    if anew or not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as temporary:
            shutil.copyfile(path, temporary)


def _log(job: Any) -> str:
    """The last line that a job wrote."""
    try:
        lines = Path(job.paths.stderr).read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return ""
    told = [line.strip() for line in lines if line.strip()]
    return f": {told[-1][:200]}" if told else ""
