"""What a worker says of itself when it is asked: its framework, how fast it multiplies, and how steadily.

It is measured here and not in the shell, because NumPy there has another library for matrices, and threads
that nobody pinned.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from typing import Any

from harness.core.adapter import Adapter
from harness.core.machine import host, matmul, noise, timing
from harness.core.validation import to_plain
from harness.worker.events import Emit

ROOM = 0.9  # of a core for each thread; with less, other work was in the way


def answer(command: Mapping[str, Any], adapter: Adapter, import_s: float, threads: int, emit: Emit) -> None:
    """Carry out a command: `limit` and `noise` say whether these are measured.

    The event has `import_s`, `executions`, `environment`, `limit` (a Peak, with the `load` that it was
    measured at, and whether other work has `disturbed` it) and `noise`, or an `error` in words.
    """
    event: dict[str, Any] = {"event": "gauged", "import_s": import_s}
    try:
        event["executions"] = list(adapter.executions())
        event["environment"] = adapter.environment()
        load = timing.load_average()
        if command["limit"]:
            ticks, start = host.ticks(), timing.ClockReading.now()
            found = to_plain(matmul.peak(adapter.multiply))
            passed = timing.ClockReading.now().since(start)
            room = host.room_since(ticks, passed.wall_s, passed.cpu_s)
            disturbed = room is not None and room < ROOM * threads
            event["limit"] = {**found, "load": load, "disturbed": disturbed}
        if command["noise"]:
            event["noise"] = to_plain(noise.aa_noise(adapter.multiply, threads))
    except Exception as error:
        traceback.print_exc()
        event["error"] = f"{type(error).__name__}: {error}"
    emit(event)
    emit({"event": "ended"})
