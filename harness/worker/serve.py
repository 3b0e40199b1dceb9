"""The worker's main loop: import one adapter, then serve tasks until the shell closes the pipe.

Standard input carries one JSON line per task: `{"task": "run", "folder": ..., "force": bool, "prunable":
bool}`; `trace`, `export`, `probe` and `autotune` have modules of their own. The original standard output
carries events back. After each epoch of a prunable run the worker waits for `{"task": "continue"}` or
`{"task": "stop"}`. Both pipes are moved out of reach of the frameworks first: what they print goes to
standard error, which is a file of the shell, or to the run's `worker.log` during a run. When standard input
ends, the shell is gone and the worker exits at once: an orphan must not write to folders that a new sweep
uses.
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
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from harness.core import fast_imports
from harness.core.adapter import Adapter, AdapterOptions
from harness.core.machine import timing
from harness.core.runs.run_folder import CONCLUSIVE, RunFolder
from harness.core.validation import parse
from harness.worker.autotune import time_executions
from harness.worker.events import Emit, EventPipe
from harness.worker.export import export
from harness.worker.probe import probe_adapter
from harness.worker.program_cache import Programs
from harness.worker.trace import trace_all
from harness.worker.train import ShouldContinue, run


def main(arguments: str) -> None:
    """Serve tasks. `arguments` is JSON: `adapter` (a module) and `options` (AdapterOptions)."""
    settings = json.loads(arguments)
    module = settings["adapter"]
    pipe = EventPipe(os.fdopen(os.dup(1), "w", encoding="utf-8"))
    emit = pipe.emit
    commands = os.fdopen(os.dup(0), "r", encoding="utf-8")
    log = os.dup(2)
    os.dup2(log, 1)
    faulthandler.enable()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    inbox = _listen(commands)

    def should_continue() -> bool:
        return bool(inbox.get()["task"] == "continue")

    adapter, import_s = _load(module, parse(AdapterOptions, settings["options"]), emit)
    programs = Programs(adapter)
    tasks: dict[str, Callable[[dict[str, Any]], None]] = {
        "run": lambda command: _run(command, programs, import_s, pipe, log, should_continue),
        "trace": lambda command: trace_all(command, programs, emit),
        "export": lambda command: export(command, module, programs, emit),
        "probe": lambda command: probe_adapter(
            command, adapter, import_s, settings["options"]["threads"], emit
        ),
        "autotune": lambda command: time_executions(command, adapter, emit),
    }
    while True:
        command = inbox.get()
        tasks[command["task"]](command)


def import_adapter(module: str, options: AdapterOptions) -> Adapter:
    """The adapter of a module.

    The objects that the imports created are frozen, so that the garbage collector does not scan them while
    steps are timed; scanning took 2 % of the steps of Keras on torch.
    """
    with fast_imports.fast_import():
        adapter: Adapter = importlib.import_module(module).adapter(options)
    gc.freeze()
    return adapter


def _run(
    command: dict[str, Any],
    programs: Programs,
    import_s: float,
    pipe: EventPipe,
    log: int,
    should_continue: ShouldContinue,
) -> None:
    """Execute the run of a folder, unless another sweep finished it while this worker waited for the lock."""
    folder = RunFolder(Path(command["folder"]))
    with folder.locked():
        if command["force"] or folder.status() not in CONCLUSIVE:
            if command["force"]:
                folder.checkpoint.unlink(missing_ok=True)
            folder.set_aside()
            _print_to(os.open(folder.path / "worker.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644))
            pipe.immediate = command["prunable"]
            run(folder, programs, import_s, pipe.emit, should_continue if command["prunable"] else None)
            _print_to(os.dup(log))
    pipe.emit({"event": "ended"})


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
    """Redirect the output of this process and its libraries to an open file, and close `descriptor`."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def _listen(commands: TextIO) -> queue.Queue[dict[str, Any]]:
    """Read commands on a thread, so that the end of input is noticed during a training too."""
    inbox: queue.Queue[dict[str, Any]] = queue.Queue()

    def listen() -> None:
        try:
            for line in commands:
                inbox.put(json.loads(line))
        finally:
            os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    return inbox
