"""The worker's loop: import one adapter, then serve runs until the shell goes away.

Standard input carries one JSON line a task (`{"task": "run", "folder": ..., "again": bool, "judged": bool}`;
"trace", "export", "gauge" and "calibrate" have modules of their own), the first standard output carries
events back. After each epoch of a run that is judged, a line `{"task": "go"}` or `{"task": "stop"}` says
whether it goes on. Both pipes are moved out of the frameworks' reach at once: whatever they print goes to
standard error, which is a file of the shell's, or the run's `worker.log` while there is a run. When standard
input ends, the shell is gone, and so are we: an orphan must not go on writing where a new sweep writes.
"""

from __future__ import annotations

import faulthandler
import gc
import importlib
import json
import os
import queue
import sys
import threading
import traceback
from pathlib import Path
from typing import Any, TextIO

from harness.core import fast_imports
from harness.core.adapter import Adapter, AdapterOptions
from harness.core.machine import timing
from harness.core.runs.run_folder import CONCLUSIVE, RunFolder
from harness.core.validation import parse
from harness.worker import autotune, probe
from harness.worker.events import Answers, Emit
from harness.worker.export import export
from harness.worker.program_cache import Programs
from harness.worker.trace import trace_all
from harness.worker.train import run


def main(arguments: str) -> None:
    """Serve. `arguments` is JSON: `adapter` (module), `options` (AdapterOptions); `start` reads `cores`."""
    asked = json.loads(arguments)
    answers = Answers(os.fdopen(os.dup(1), "w", encoding="utf-8"))
    emit = answers.emit
    commands = os.fdopen(os.dup(0), "r", encoding="utf-8")
    log = os.dup(2)
    os.dup2(log, 1)
    faulthandler.enable()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    inbox = _listen(commands)

    def judge() -> bool:
        return bool(inbox.get()["task"] == "go")

    adapter, import_s = _load(asked["adapter"], parse(AdapterOptions, asked["options"]), emit)
    programs = Programs(adapter)
    while True:
        command = inbox.get()
        if command["task"] == "trace":
            trace_all(command, programs, emit)
            continue
        if command["task"] == "export":
            export(command, asked["adapter"], programs, emit)
            continue
        if command["task"] == "gauge":
            probe.answer(command, adapter, import_s, asked["options"]["threads"], emit)
            continue
        if command["task"] == "calibrate":
            autotune.answer(command, adapter, emit)
            continue
        folder = RunFolder(Path(command["folder"]))
        with folder.locked():
            # another sweep may have finished the same run while we waited for the lock
            if command["again"] or folder.status() not in CONCLUSIVE:
                if command["again"]:
                    folder.checkpoint.unlink(missing_ok=True)
                folder.set_aside()
                _print_to(os.open(folder.path / "worker.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644))
                answers.at_once = command["judged"]
                run(folder, programs, import_s, emit, judge if command["judged"] else None)
                _print_to(os.dup(log))
        emit({"event": "ended"})


def import_adapter(module: str, options: AdapterOptions) -> Adapter:
    """The adapter of a module. What the imports made stays: Python's garbage collector need not go through it
    again and again while steps are timed, which took 2 % of those of Keras on torch."""
    with fast_imports.quick():
        adapter: Adapter = importlib.import_module(module).adapter(options)
    gc.freeze()
    return adapter


def _load(module: str, options: AdapterOptions, emit: Emit) -> tuple[Adapter, float]:
    start = timing.ClockReading.now()
    try:
        adapter = import_adapter(module, options)
    except Exception as error:
        traceback.print_exc()
        sys.stderr.flush()
        emit({"event": "broken", "type": type(error).__name__, "message": str(error)})
        os._exit(1)
    import_s = timing.ClockReading.now().since(start).wall_s
    emit({"event": "ready", "import_s": import_s, "pid": os.getpid()})
    return adapter, import_s


def _print_to(descriptor: int) -> None:
    """Send what this process and its libraries print to an open file, which is taken over."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def _listen(commands: TextIO) -> queue.Queue[dict[str, Any]]:
    """Read commands on a thread, so that the end of input is noticed in the middle of a training too."""
    inbox: queue.Queue[dict[str, Any]] = queue.Queue()

    def listen() -> None:
        try:
            for line in commands:
                inbox.put(json.loads(line))
        finally:
            os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    return inbox
