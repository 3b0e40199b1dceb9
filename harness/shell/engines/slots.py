"""What it means to run beside others: how many runs at a time, on which cores, and which runs may not.

Runs that share a machine slow each other down, by its caches, its memory and its clock, even if each has a
core of its own. Who compares speed needs runs that were alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from harness.core.machine import host
from harness.core.validation import ConfigError, Mistake
from harness.shell.environment.devices import devices_of
from harness.shell.runs.records import PreparedRun
from harness.shell.workers.key import WorkerKey

COMPARED = ("framework", "execution", "precision", "threads", "device", "repeat")
"""Keys by which runs are compared for speed, which hyperparameters and seeds are not."""


@dataclass(frozen=True)
class SlotSpec:
    """Where a slot's workers sit: a device (empty: whichever a run asks for), and cores (none: any)."""

    name: str
    device: str = ""
    cores: tuple[int, ...] = ()

    def takes(self, run: PreparedRun) -> bool:
        """Whether a run can go on here."""
        return not self.device or self.device in devices_of(run.config)

    def placed(self, key: WorkerKey) -> WorkerKey:
        """A worker as it is started here."""
        return replace(key, device=self.device) if self.device else key


def check(runs: Sequence[PreparedRun]) -> None:
    """Raise ConfigError where runs can't go on at the same time as they are asked for."""
    mistakes = [
        Mistake(key, "differs between the runs of a sweep, which has one for all of them")
        for key in ("workers", "pin", "timings")
        if len({getattr(run.config, key) for run in runs}) > 1
    ]
    if mistakes:
        raise ConfigError(mistakes)
    for config in [run.config for run in runs[:1]]:
        compared = differing(runs)
        if config.workers > 1 and config.timings == "alone" and compared:
            problem = f"the runs differ in {', '.join(compared)}: side by side they would disturb the speeds"
            advice = "workers=1; or timings=shared, which marks their times"
            mistakes.append(Mistake("workers", f"{config.workers} at a time, but {problem}", advice))
        if config.pin:
            mistakes += _too_few(runs)
    if mistakes:
        raise ConfigError(mistakes)


def slot_specs(runs: Sequence[PreparedRun]) -> list[SlotSpec]:
    """The seats for runs that `check` has passed."""
    places = _places(runs)
    if len(places) == 1:
        places = {"1": ""}
    threads = max(run.config.threads for run in runs)
    cores = host.allowed_cores() if runs[0].config.pin else []
    return [
        SlotSpec(name, device, tuple(cores[number * threads : (number + 1) * threads]))
        for number, (name, device) in enumerate(places.items())
    ]


def differing(runs: Sequence[PreparedRun]) -> list[str]:
    """The keys of `COMPARED` in which runs differ."""

    def value(run: PreparedRun, key: str) -> object:
        found: object = getattr(run.config, key)
        return run.config.framework.name if key == "framework" else found

    return [key for key in COMPARED if len({value(run, key) for run in runs}) > 1]


def _places(runs: Sequence[PreparedRun]) -> dict[str, str]:
    """A device for each run that can go on at a time, by a name for people."""
    config = runs[0].config
    devices = dict.fromkeys(device for run in runs for device in devices_of(run.config))
    if config.timings == "alone" and differing(runs):
        return {"1": ""}
    numbers = range(1, config.workers + 1)
    if len(devices) == 1:
        return {str(number): device for number in numbers for device in devices}
    return {
        f"{device} {number}" if config.workers > 1 else device: device
        for device in devices
        for number in numbers
    }


def _too_few(runs: Sequence[PreparedRun]) -> list[Mistake]:
    """What is wrong with pinning these runs."""
    threads = max(run.config.threads for run in runs)
    slots, cores = len(_places(runs)), len(host.allowed_cores())
    if slots * threads <= cores:
        return []
    problem = f"{slots} runs at a time with threads={threads} need {slots * threads} cores; there are {cores}"
    return [Mistake("pin", problem, f"at most {max(1, cores // threads)} at a time, or pin=false")]
