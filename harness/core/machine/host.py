"""The machine as its operating system describes it: processor, cores, cards, memory, load, quotas.

Nothing here is measured, and nothing is guessed: a value that the system does not report is None or empty.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

PROC, SYS, DEV = Path("/proc"), Path("/sys"), Path("/dev")
IDLE, WAITING, STEAL = 3, 4, 7  # indices of the numbers in /proc/stat
BF16 = {"avx512_bf16", "amx_bf16", "avx_ne_convert", "bf16", "svebf16"}  # as /proc/cpuinfo calls them


@dataclass(frozen=True)
class Ticks:
    """All processors' time since boot, in ticks: total, idle, and given to other guests of the host."""

    all: int
    idle: int
    steal: int


def cpu_model() -> str:
    """Return the processor's name, or its architecture if the system does not name it."""
    for line in _lines(PROC / "cpuinfo"):
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def cards() -> tuple[str, ...]:
    """Return the models of NVIDIA's cards in bus order, as listed by the driver in /proc."""
    models: list[str] = []
    for path in sorted((PROC / "driver/nvidia/gpus").glob("*/information")):
        lines = (line.partition(":") for line in _lines(path))
        models += [value.strip() for key, _, value in lines if key.strip() == "Model"]
    # a container may see the cards without the driver's list of them; Linux on Windows has one behind dxg
    others = [*sorted(DEV.glob("nvidia[0-9]*")), *DEV.glob("dxg")]
    return tuple(models) or tuple(f"NVIDIA {path.name}" for path in others)


def allowed_cores() -> list[int]:
    """Return the numbers of the cores that this process may run on; all of them without an affinity mask."""
    return sorted(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1))


def cpu_list() -> str:
    """Return the cores that this process may run on in Linux' notation, `0-3,8`."""
    ranges: list[list[int]] = []
    for core in allowed_cores():
        if ranges and core == ranges[-1][1] + 1:
            ranges[-1][1] = core
        else:
            ranges.append([core, core])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in ranges)


def bf16_instructions() -> tuple[str, ...]:
    """Return the processor's bfloat16 instructions; without any, bfloat16 is emulated by way of float32."""
    return tuple(sorted(BF16 & instructions()))


def instructions() -> frozenset[str]:
    """Return the processor's extensions as named in /proc/cpuinfo; empty without such a list."""
    for line in _lines(PROC / "cpuinfo"):
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def quota() -> float | None:
    """Return the CPU quota of this process' control groups (version 2, or 1) in cores; None without one."""
    quotas: list[float] = []
    for folder in _groups("", SYS / "fs/cgroup"):
        allowed, _, period = "".join(_lines(folder / "cpu.max")).partition(" ")
        if allowed not in ("", "max"):
            quotas.append(int(allowed) / int(period))
    for folder in _groups("cpu", SYS / "fs/cgroup/cpu"):
        allowed, period = ("".join(_lines(folder / f"cpu.cfs_{name}_us")) for name in ("quota", "period"))
        if allowed and period and int(allowed) > 0:
            quotas.append(int(allowed) / int(period))
    return min(quotas, default=None)


def usable_cores() -> int:
    """Return how many cores a worker can keep busy: at least one."""
    cores, bound = len(allowed_cores()), quota()
    return max(1, cores if bound is None else min(cores, int(bound)))


def memory_mb() -> tuple[float, float] | None:
    """Return the total and the available memory in MB (10^6 bytes)."""
    lines = (line.partition(":") for line in _lines(PROC / "meminfo"))
    megabytes = {key: int(value.split()[0]) * 1024 / 1e6 for key, _, value in lines}
    if not {"MemTotal", "MemAvailable"} <= megabytes.keys():
        return None
    return megabytes["MemTotal"], megabytes["MemAvailable"]


def governors() -> tuple[str, ...]:
    """Return the distinct frequency governors of the cores; empty if not reported, as on virtual machines."""
    paths = (SYS / "devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_governor")
    return tuple(sorted({line for path in paths for line in _lines(path)}))


def ticks() -> Ticks | None:
    """Return the processors' time since boot; None if not reported."""
    for line in _lines(PROC / "stat"):
        name, *numbers = line.split()
        if name == "cpu" and len(numbers) > STEAL:
            # the guests' time that follows is already part of the user's time
            counts = [int(number) for number in numbers[: STEAL + 1]]
            return Ticks(sum(counts), counts[IDLE] + counts[WAITING], counts[STEAL])
    return None


def steal_since(before: Ticks | None) -> float | None:
    """Return the share of all processors' time since `before` that went to other guests of the host."""
    now = ticks()
    if before is None or now is None or now.all <= before.all:
        return None
    return (now.steal - before.steal) / (now.all - before.all)


def available_cores_since(before: Ticks | None, wall_s: float, cpu_s: float) -> float | None:
    """Return the average number of cores available to this process since `before`: idle ones plus its own.

    `wall_s` is the time since then, `cpu_s` the CPU time that this process used in it.
    """
    now = ticks()
    if before is None or now is None or now.all <= before.all:
        return None
    return (now.idle - before.idle) / (now.all - before.all) * (os.cpu_count() or 1) + cpu_s / wall_s


def energy_counters() -> dict[str, bool]:
    """Return the processor's energy counters (RAPL) by name, and whether this process may read each."""
    readable = {}
    for path in sorted((SYS / "class/powercap").glob("*/energy_uj")):
        name = "".join(_lines(path.with_name("name"))) or path.parent.name
        readable[f"{path.parent.name} {name}"] = bool(_lines(path))
    return readable


def _groups(controller: str, mount: Path) -> list[Path]:
    """Return the folders of this process' control group and its ancestors; no controller for version 2."""
    folders = [mount]
    for line in _lines(PROC / "self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            inner = mount / path.strip("/")
            folders += [folder for folder in (inner, *inner.parents) if folder.is_relative_to(mount)]
    return list(dict.fromkeys(folders))


def _lines(path: Path) -> list[str]:
    """Return the lines of a system file; empty if it is missing or not readable."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
