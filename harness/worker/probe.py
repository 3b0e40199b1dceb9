"""Describe this worker's framework, and measure its matrix limit and its noise.

The measurement belongs in the worker: NumPy in the shell uses another matrix library, with unpinned threads.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from typing import Any

from harness.core.adapter import Adapter
from harness.core.machine import host, matmul, noise, timing
from harness.core.validation import to_plain
from harness.worker.events import Emit

MIN_CORE_SHARE = 0.9  # of a core per thread; with less, other work disturbed the measurement


def probe_adapter(
    command: Mapping[str, Any], adapter: Adapter, import_s: float, threads: int, emit: Emit
) -> None:
    """Execute a `probe` task, whose `limit` and `noise` say what to measure.

    The event has `import_s`, `executions`, `environment`, `limit` (a Peak with the `load` average and whether
    other work `disturbed` it) and `noise`, or an `error` message.
    """
    event: dict[str, Any] = {"event": "probed", "import_s": import_s}
    try:
        event["executions"] = list(adapter.executions())
        event["environment"] = adapter.environment()
        load = timing.load_average()
        if command["limit"]:
            ticks, start = host.ticks(), timing.ClockReading.now()
            peak = to_plain(matmul.measure_peak(adapter.multiply))
            elapsed = timing.ClockReading.now().since(start)
            cores = host.available_cores_since(ticks, elapsed.wall_s, elapsed.cpu_s)
            disturbed = cores is not None and cores < MIN_CORE_SHARE * threads
            event["limit"] = {**peak, "load": load, "disturbed": disturbed}
        if command["noise"]:
            event["noise"] = to_plain(noise.aa_noise(adapter.multiply, threads))
    except Exception as error:
        traceback.print_exc()
        event["error"] = f"{type(error).__name__}: {error}"
    emit(event)
    emit({"event": "ended"})
