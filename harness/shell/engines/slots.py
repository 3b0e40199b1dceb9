"""The slots of this machine: how many runs execute at a time, on which cores and devices.

Runs that share a machine slow each other down through its caches, memory and clock rate, even on separate
cores. Runs whose speeds are compared must therefore run alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from harness.core.machine import host
from harness.core.validation import ConfigError, Mistake
from harness.shell.environment.devices import devices_of
from harness.shell.runs.records import RunTask
from harness.shell.workers.key import WorkerKey

COMPARED = ("framework", "execution", "precision", "threads", "device", "repeat")
"""Keys whose values are compared for speed, unlike hyperparameters and seeds."""


@dataclass(frozen=True)
class SlotSpec:
    """Where a slot's workers run: a device (empty: the one each run asks for), and cores (empty: any)."""

    name: str
    device: str = ""
    cores: tuple[int, ...] = ()

    def accepts(self, run: RunTask) -> bool:
        """Whether a run can execute in this slot."""
        return not self.device or self.device in devices_of(run.config)

    def worker_key(self, key: WorkerKey) -> WorkerKey:
        """The key of a run's worker, with this slot's device."""
        return replace(key, device=self.device) if self.device else key


def check_concurrency(runs: Sequence[RunTask]) -> None:
    """Raise ConfigError if runs can't execute concurrently as configured."""
    mistakes = [
        Mistake(key, "differs between the runs of a sweep, which has one for all of them")
        for key in ("workers", "pin", "timings")
        if len({getattr(run.config, key) for run in runs}) > 1
    ]
    if mistakes:
        raise ConfigError(mistakes)
    for config in [run.config for run in runs[:1]]:
        compared = differing_keys(runs)
        if config.workers > 1 and config.timings == "alone" and compared:
            problem = f"the runs differ in {', '.join(compared)}: side by side they would disturb the speeds"
            advice = "workers=1; or timings=shared, which marks their times"
            mistakes.append(Mistake("workers", f"{config.workers} at a time, but {problem}", advice))
        if config.pin:
            mistakes += _pin_mistakes(runs)
    if mistakes:
        raise ConfigError(mistakes)


def slot_specs(runs: Sequence[RunTask]) -> list[SlotSpec]:
    """The slots for runs that `check_concurrency` has passed."""
    devices = _slot_devices(runs)
    if len(devices) == 1:
        devices = {"1": ""}
    threads = max(run.config.threads for run in runs)
    cores = host.allowed_cores() if runs[0].config.pin else []
    return [
        SlotSpec(name, device, tuple(cores[number * threads : (number + 1) * threads]))
        for number, (name, device) in enumerate(devices.items())
    ]


def differing_keys(runs: Sequence[RunTask]) -> list[str]:
    """The keys of `COMPARED` in which runs differ."""

    def value(run: RunTask, key: str) -> object:
        return run.config.framework.name if key == "framework" else getattr(run.config, key)

    return [key for key in COMPARED if len({value(run, key) for run in runs}) > 1]


def oversubscription(runs: Sequence[RunTask], slots: int) -> str:
    """A warning if the threads of all slots exceed the cores; empty if they do not."""
    threads = max(run.config.threads for run in runs)
    cores = host.usable_cores()
    if slots == 1 or slots * threads <= cores:
        return ""
    return f"{slots} runs at a time with threads={threads} share {cores} cores: expect no gain beyond that"


def _slot_devices(runs: Sequence[RunTask]) -> dict[str, str]:
    """The device of each slot, by the slot's name for display."""
    config = runs[0].config
    devices = dict.fromkeys(device for run in runs for device in devices_of(run.config))
    if config.timings == "alone" and differing_keys(runs):
        return {"1": ""}
    numbers = range(1, config.workers + 1)
    if len(devices) == 1:
        return {str(number): device for number in numbers for device in devices}
    return {
        f"{device} {number}" if config.workers > 1 else device: device
        for device in devices
        for number in numbers
    }


def _pin_mistakes(runs: Sequence[RunTask]) -> list[Mistake]:
    """A mistake if there are too few cores to pin these runs."""
    threads = max(run.config.threads for run in runs)
    slots, cores = len(_slot_devices(runs)), len(host.allowed_cores())
    if slots * threads <= cores:
        return []
    problem = f"{slots} runs at a time with threads={threads} need {slots * threads} cores; there are {cores}"
    return [Mistake("pin", problem, f"at most {max(1, cores // threads)} at a time, or pin=false")]
