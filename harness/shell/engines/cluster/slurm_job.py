"""A Slurm job's side: executes the runs that the parent requests through the mailbox in a shared folder."""

from __future__ import annotations

import os
import queue
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

from harness.shell.engines.cluster.mailbox import POLL_S, Mailbox, SilenceError
from harness.shell.engines.cluster.node import NodeAgent, identity

TO_JOB, FROM_JOB = "told.jsonl", "said.jsonl"  # the two files of a job's mailbox
FILES = "files"  # folder next to those of the jobs, with the files that runs read


def serve(folder: str, silence_s: float) -> None:
    """Execute runs until the parent ends the job or is silent for `silence_s`; submitit calls this."""
    path = Path(folder)
    for number in (signal.SIGTERM, signal.SIGINT):  # submitit ignores SIGTERM
        signal.signal(number, _exit)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # submitit's request for a checkpoint of its own kind
    agent = NodeAgent()
    mailbox = Mailbox(path / TO_JOB, path / FROM_JOB, silence_s)
    tasks: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(mailbox, agent, tasks), daemon=True).start()
    mailbox.send({"event": "ready", **identity()})
    try:
        while True:
            task = tasks.get()
            if task["task"] == "warm_up":
                agent.warm_up(task["job"])
                mailbox.send({"event": "ended"})
                continue
            for name in agent.missing_files(task["files"]):
                agent.put(name, (path.parent / FILES / name).read_bytes())
            for message in agent.run(task["request"]):
                if message["event"] == "file":
                    (path / message["name"]).write_bytes(message["content"])
                    message = {"event": "file", "name": message["name"]}
                mailbox.send(message)
    finally:
        agent.close()


def _listen(mailbox: Mailbox, agent: NodeAgent, tasks: queue.SimpleQueue[dict[str, Any]]) -> None:
    """Read the parent's messages on a thread, so that an answer or an end arrives during a run too."""
    try:
        while True:
            message = mailbox.receive()
            if message is None:
                time.sleep(POLL_S)
            elif message["task"] == "continue_or_stop":
                agent.continue_or_stop(message["should_continue"])
            elif message["task"] == "end":
                break
            else:
                tasks.put(message)
    except SilenceError:
        pass  # the parent is gone, so the results would be lost anyway
    finally:
        try:
            agent.close()
        finally:
            os._exit(0)  # the main thread may be blocked


def _exit(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
