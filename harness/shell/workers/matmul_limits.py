"""The matrix limits that runs are held against: looked up, or measured once before the first run is timed.

A limit belongs to a device and not to a framework, so one framework measures it for all: the first that is
installed, or the run's own where that one can't, in a worker with the run's device, precision and threads. It
is kept, so that runs of different days and frameworks are held against the same number; one that other work
disturbed is measured again by the next command. A results folder has its limits in it, and takes those that
it lacks from the user's cache, where the measurements of all folders are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.core.config.run_config import FrameworkConfig, RunConfig
from harness.core.machine import matmul_limits
from harness.core.machine.matmul_limits import Device, Limit
from harness.core.storage import locks, user_cache
from harness.core.storage.dates import today
from harness.shell.environment.frameworks import conf_folder, frameworks
from harness.shell.environment.versions import look_up
from harness.shell.workers.key import WorkerKey
from harness.shell.workers.process import Worker, WorkerDiedError

FIRST = "torch"  # the backend that is asked first: it is imported the fastest, and none multiplies faster


class MatmulLimits:
    """The limits that the runs of a session need; what can't be measured is tried once."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note = note
        self._known: dict[tuple[Path, str, str, int], float | None] = {}

    def of(self, results_dir: Path, config: RunConfig, warm: Mapping[WorkerKey, Worker]) -> float | None:
        """The limit of a run's device in GFLOP/s, None where no framework can measure it.

        A worker that is `warm` is asked before another one is started. Nothing else may run meanwhile.
        """
        key = results_dir, config.device, config.precision, config.threads
        if key not in self._known:
            asked = _candidates(config.framework)
            kept = _kept(results_dir, config, asked)
            if kept is None or kept.disturbed:
                with _one_at_a_time():
                    kept = _kept(results_dir, config, asked)
                    if kept is None or kept.disturbed:
                        kept = self._measured(results_dir, config, asked, warm) or kept
            self._known[key] = None if kept is None else kept.gflops
        return self._known[key]

    def _measured(
        self,
        results_dir: Path,
        config: RunConfig,
        candidates: Iterable[FrameworkConfig],
        warm: Mapping[WorkerKey, Worker],
    ) -> Limit | None:
        what = f"{config.device} in {config.precision}, threads={config.threads}"
        reason = "no framework is there"
        for framework in candidates:
            key = WorkerKey.of(replace(config, framework=framework))
            try:
                found = measure(results_dir, framework, key, warm.get(key))
            except (WorkerDiedError, ProbeError) as error:
                reason = str(error)
                continue
            rate = f"{found.gflops:,.0f} GFLOP/s" + ", with other work beside it" * found.disturbed
            self._note(f"{what}: matrices are multiplied at up to {rate} (limit=off leaves it out)")
            return found
        self._note(f"{what}: how fast matrices are multiplied can't be measured: {reason}")
        return None


def _candidates(own: FrameworkConfig) -> list[FrameworkConfig]:
    """Who may measure: the first framework that is installed, and the run's own, which may be a user's
    or in an interpreter of its own."""
    installed = measurers((frameworks([conf_folder()]) | {own.name: own}).values())
    return [*installed[:1], *(framework for framework in installed[1:] if framework is own)]


def _kept(results_dir: Path, config: RunConfig, candidates: Iterable[FrameworkConfig]) -> Limit | None:
    """What was measured before by any of those who may; the first that nothing disturbed."""
    known: Limit | None = None
    for framework in candidates:
        device = device_of(framework, config.device)
        known = known_limit(results_dir, device, config.precision, config.threads) or known
        if known is not None and not known.disturbed:
            break
    return known


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Measure alone, and look again before: a second process finds what the first one measured. Without a
    cache it would find nothing, and need not wait."""
    with contextlib.ExitStack() as alone:
        with contextlib.suppress(OSError):
            user_cache.folder().mkdir(parents=True, exist_ok=True)
            alone.enter_context(locks.held(user_cache.folder() / "limit.lock"))
        yield


class ProbeError(Exception):
    """A worker that lives can't measure what it was asked for."""


def measurers(known: Iterable[FrameworkConfig]) -> list[FrameworkConfig]:
    """Those frameworks that are installed, in the order in which they are asked for a limit."""
    there = [f for f in known if None not in look_up(f, f.distributions).values()]
    return sorted(there, key=lambda f: (f.backend != FIRST, len(f.distributions)))


def device_of(framework: FrameworkConfig, device: str) -> Device:
    """What belongs to a time that this framework takes: the machine, and the versions."""
    found = look_up(framework, framework.distributions)
    return Device.here(device, {name: str(version) for name, version in found.items()})


def known_limit(results_dir: Path, device: Device, precision: str, threads: int) -> Limit | None:
    """The limit that is kept, None where it was not measured. `disturbed` where a better one is wanted."""
    own = matmul_limits.limit(results_dir, device, precision, threads)
    if own is not None and not own.disturbed:
        return own
    others = matmul_limits.limit(user_cache.folder(), device, precision, threads)
    if others is None or others.disturbed:
        return own
    return matmul_limits.keep(results_dir, device, others)


def measure(results_dir: Path, framework: FrameworkConfig, key: WorkerKey, worker: Worker | None) -> Limit:
    """Have a limit measured, in this worker or in one for it alone, and keep it.

    Raises WorkerDiedError or GaugeError.
    """
    if worker is not None and worker.alive:
        return keep(results_dir, framework, key, worker.gauge(limit=True))
    worker = Worker(key)
    try:
        return keep(results_dir, framework, key, worker.gauge(limit=True))
    finally:
        worker.close()


def keep(results_dir: Path, framework: FrameworkConfig, key: WorkerKey, said: Mapping[str, Any]) -> Limit:
    """Keep the limit that a worker said, unless a higher one is kept; raises GaugeError if it said none."""
    if "error" in said:
        raise ProbeError(said["error"])
    peak = said["limit"]
    found = Limit(
        precision=key.precision,
        threads=key.threads,
        gflops=peak["gflops"],
        size=peak["size"],
        framework=framework.name,
        measured=today(),
        load=peak["load"],
        disturbed=peak["disturbed"],
    )
    device = device_of(framework, key.device)
    with contextlib.suppress(OSError):  # a cache that can't be written to costs the next folder a second
        matmul_limits.keep(user_cache.folder(), device, found)
    return matmul_limits.keep(results_dir, device, found)
