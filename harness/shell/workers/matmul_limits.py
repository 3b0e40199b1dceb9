"""Matrix limits for runs: looked up, or measured once before the first run is timed.

A limit is a property of a device, not of a framework, so one framework measures it for all: the first
installed one, or the run's own if that one fails, in a worker with the run's device, precision and threads.
Limits are stored, so runs of different days and frameworks are compared with the same number. A limit that
other work disturbed is measured again by the next command. Each results folder stores its limits; missing
ones are copied from the user cache, which holds the measurements of all folders.
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

FIRST = "torch"  # the preferred backend: it imports fastest, and none multiplies faster


class ProbeError(Exception):
    """A worker is alive but cannot make the requested measurement."""


class MatmulLimits:
    """The limits for the runs of a session; a failed measurement is not repeated."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note = note
        self._limits: dict[tuple[Path, str, str, int], float | None] = {}

    def get(self, results_dir: Path, config: RunConfig, warm: Mapping[WorkerKey, Worker]) -> float | None:
        """The limit of a run's device in GFLOP/s, or None if no framework can measure it.

        Uses one of the `warm` workers if possible. Nothing else may run during a measurement.
        """
        key = results_dir, config.device, config.precision, config.threads
        if key not in self._limits:
            candidates = _candidates(config.framework)
            limit = _stored(results_dir, config, candidates)
            if limit is None or limit.disturbed:
                with _measurement_lock():
                    limit = _stored(results_dir, config, candidates)
                    if limit is None or limit.disturbed:
                        limit = self._measure(results_dir, config, candidates, warm) or limit
            self._limits[key] = None if limit is None else limit.gflops
        return self._limits[key]

    def _measure(
        self,
        results_dir: Path,
        config: RunConfig,
        candidates: Iterable[FrameworkConfig],
        warm: Mapping[WorkerKey, Worker],
    ) -> Limit | None:
        what = f"{config.device} in {config.precision}, threads={config.threads}"
        reason = "no framework is installed"
        for framework in candidates:
            key = WorkerKey.of(replace(config, framework=framework))
            try:
                limit = measure_limit(results_dir, framework, key, warm.get(key))
            except (WorkerDiedError, ProbeError) as error:
                reason = str(error)
                continue
            rate = f"{limit.gflops:,.0f} GFLOP/s" + ", disturbed by other work" * limit.disturbed
            self._note(f"{what}: matrices are multiplied at up to {rate} (limit=off leaves it out)")
            return limit
        self._note(f"{what}: the matrix limit can't be measured: {reason}")
        return None


def measuring_frameworks(frameworks: Iterable[FrameworkConfig]) -> list[FrameworkConfig]:
    """The installed frameworks, in the order in which they are tried for a limit."""
    installed = [f for f in frameworks if None not in look_up(f, f.distributions).values()]
    return sorted(installed, key=lambda f: (f.backend != FIRST, len(f.distributions)))


def describe_device(framework: FrameworkConfig, device: str) -> Device:
    """What a framework's timings on a device depend on: the machine and the installed versions."""
    versions = look_up(framework, framework.distributions)
    return Device.here(device, {name: str(version) for name, version in versions.items()})


def stored_limit(results_dir: Path, device: Device, precision: str, threads: int) -> Limit | None:
    """The stored limit, or None if it was never measured; a `disturbed` one is worth measuring again."""
    own = matmul_limits.read_limit(results_dir, device, precision, threads)
    if own is not None and not own.disturbed:
        return own
    cached = matmul_limits.read_limit(user_cache.folder(), device, precision, threads)
    if cached is None or cached.disturbed:
        return own
    return matmul_limits.store_limit(results_dir, device, cached)


def measure_limit(
    results_dir: Path, framework: FrameworkConfig, key: WorkerKey, worker: Worker | None
) -> Limit:
    """Measure and store a limit, in `worker` if it is alive, else in a worker of its own.

    Raises WorkerDiedError or ProbeError.
    """
    if worker is not None and worker.alive:
        return store_measurement(results_dir, framework, key, worker.probe(limit=True))
    worker = Worker(key)
    try:
        return store_measurement(results_dir, framework, key, worker.probe(limit=True))
    finally:
        worker.close()


def store_measurement(
    results_dir: Path, framework: FrameworkConfig, key: WorkerKey, reply: Mapping[str, Any]
) -> Limit:
    """Store the limit in a worker's reply unless a higher one is stored; returns the stored limit.

    Raises ProbeError if the reply reports an error.
    """
    if "error" in reply:
        raise ProbeError(reply["error"])
    peak = reply["limit"]
    limit = Limit(
        precision=key.precision,
        threads=key.threads,
        gflops=peak["gflops"],
        size=peak["size"],
        framework=framework.name,
        measured=today(),
        load=peak["load"],
        disturbed=peak["disturbed"],
    )
    device = describe_device(framework, key.device)
    with contextlib.suppress(OSError):  # without a writable cache, the next folder measures again
        matmul_limits.store_limit(user_cache.folder(), device, limit)
    return matmul_limits.store_limit(results_dir, device, limit)


def _candidates(own: FrameworkConfig) -> list[FrameworkConfig]:
    """The frameworks to try: the first installed one, then the run's own, which may be defined by the user
    or live in another interpreter."""
    installed = measuring_frameworks((frameworks([conf_folder()]) | {own.name: own}).values())
    return [*installed[:1], *(framework for framework in installed[1:] if framework is own)]


def _stored(results_dir: Path, config: RunConfig, candidates: Iterable[FrameworkConfig]) -> Limit | None:
    """The first undisturbed limit stored for one of the candidates, else a disturbed one."""
    limit: Limit | None = None
    for framework in candidates:
        device = describe_device(framework, config.device)
        limit = stored_limit(results_dir, device, config.precision, config.threads) or limit
        if limit is not None and not limit.disturbed:
            break
    return limit


@contextlib.contextmanager
def _measurement_lock() -> Iterator[None]:
    """Let one process measure at a time; the caller then looks again for another process' measurement.

    Without a user cache there is nothing to share, so there is no lock either.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            user_cache.folder().mkdir(parents=True, exist_ok=True)
            stack.enter_context(locks.exclusive_lock(user_cache.folder() / "limit.lock"))
        yield
