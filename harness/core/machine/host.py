"""The machine as its operating system describes it, and the matrix limits that were measured on it.

Nothing here is measured: a limit comes from a worker (`harness/core/machine/matmul.py`) and is kept in a
folder (results, the user's cache), in a file that is named after what it depends on: processor, cores,
graphics cards, and the versions of the framework that multiplied. What a system doesn't tell is None, never a
guess.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

PROC, SYS, DEV = Path("/proc"), Path("/sys"), Path("/dev")
IDLE, WAITING, STEAL = 3, 4, 7  # which of the numbers in /proc/stat
BF16 = {"avx512_bf16", "amx_bf16", "avx_ne_convert", "bf16", "svebf16"}  # as /proc/cpuinfo calls them


@dataclass(frozen=True)
class Ticks:
    """All processors' time since the system's start: all of it, idle, and given to others of the host."""

    all: int
    idle: int
    steal: int


def cpu_model() -> str:
    """The processor's name, or its architecture where the system has no name for it."""
    for line in _lines(PROC / "cpuinfo"):
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def cards() -> tuple[str, ...]:
    """The models of NVIDIA's cards, by place, as their driver lists them without any library."""
    found = []
    for path in sorted((PROC / "driver/nvidia/gpus").glob("*/information")):
        lines = (line.partition(":") for line in _lines(path))
        found += [value.strip() for key, _, value in lines if key.strip() == "Model"]
    # a container may have the cards and not the driver's list of them; a Linux on Windows has one behind dxg
    others = [*sorted(DEV.glob("nvidia[0-9]*")), *DEV.glob("dxg")]
    return tuple(found) or tuple(f"NVIDIA {path.name}" for path in others)


def allowed_cores() -> list[int]:
    """The numbers of the cores that this process may run on: all of them where the system sets no bounds."""
    return sorted(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1))


def cpu_list() -> str:
    """The cores that this process may run on as Linux lists them, `0-3,8`."""
    runs: list[list[int]] = []
    for core in allowed_cores():
        if runs and core == runs[-1][1] + 1:
            runs[-1][1] = core
        else:
            runs.append([core, core])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in runs)


def bf16_instructions() -> tuple[str, ...]:
    """Which instructions of the processor compute in bfloat16; without any, that goes by way of float32."""
    return tuple(sorted(BF16 & instructions()))


def instructions() -> frozenset[str]:
    """The processor's extensions as /proc/cpuinfo calls them; none where the system has no such list."""
    for line in _lines(PROC / "cpuinfo"):
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def quota() -> float | None:
    """The cores' worth of time that control groups (version 2, or 1) leave us, None without a bound."""
    found: list[float] = []
    for folder in _groups("", SYS / "fs/cgroup"):
        allowed, _, period = "".join(_lines(folder / "cpu.max")).partition(" ")
        if allowed not in ("", "max"):
            found.append(int(allowed) / int(period))
    for folder in _groups("cpu", SYS / "fs/cgroup/cpu"):
        allowed, period = ("".join(_lines(folder / f"cpu.cfs_{name}_us")) for name in ("quota", "period"))
        if allowed and period and int(allowed) > 0:
            found.append(int(allowed) / int(period))
    return min(found, default=None)


def usable_cores() -> int:
    """Cores that a worker can keep busy: at least one."""
    cores, bound = len(allowed_cores()), quota()
    return max(1, cores if bound is None else min(cores, int(bound)))


def memory_mb() -> tuple[float, float] | None:
    """Memory in MB (10^6 bytes): all of it, and what is available."""
    lines = (line.partition(":") for line in _lines(PROC / "meminfo"))
    found = {key: int(value.split()[0]) * 1024 / 1e6 for key, _, value in lines}
    if not {"MemTotal", "MemAvailable"} <= found.keys():
        return None
    return found["MemTotal"], found["MemAvailable"]


def governors() -> tuple[str, ...]:
    """What sets the cores' frequencies, each once; none where the system doesn't say (as on virtual ones)."""
    paths = (SYS / "devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_governor")
    return tuple(sorted({line for path in paths for line in _lines(path)}))


def ticks() -> Ticks | None:
    """What the processors have done so far."""
    for line in _lines(PROC / "stat"):
        name, *numbers = line.split()
        if name == "cpu" and len(numbers) > STEAL:
            # the guests' time that follows is in the user's already
            counts = [int(number) for number in numbers[: STEAL + 1]]
            return Ticks(sum(counts), counts[IDLE] + counts[WAITING], counts[STEAL])
    return None


def steal_since(before: Ticks | None) -> float | None:
    """The share of all processors' time since `before` that was stolen."""
    now = ticks()
    if before is None or now is None or now.all <= before.all:
        return None
    return (now.steal - before.steal) / (now.all - before.all)


def room_since(before: Ticks | None, wall_s: float, cpu_s: float) -> float | None:
    """How many cores were idle or ours since `before`, on average, where we had `cpu_s` in `wall_s`."""
    now = ticks()
    if before is None or now is None or now.all <= before.all:
        return None
    return (now.idle - before.idle) / (now.all - before.all) * (os.cpu_count() or 1) + cpu_s / wall_s


def energy_counters() -> dict[str, bool]:
    """The processor's energy counters (RAPL) by name, and whether we may read each."""
    found = {}
    for path in sorted((SYS / "class/powercap").glob("*/energy_uj")):
        name = "".join(_lines(path.with_name("name"))) or path.parent.name
        found[f"{path.parent.name} {name}"] = bool(_lines(path))
    return found


def _groups(controller: str, mount: Path) -> list[Path]:
    """The folders of our control group and of all above it; controller is empty for version 2."""
    own = [mount]
    for line in _lines(PROC / "self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            inner = mount / path.strip("/")
            own += [folder for folder in (inner, *inner.parents) if folder.is_relative_to(mount)]
    return list(dict.fromkeys(own))


def _lines(path: Path) -> list[str]:
    """The lines of a file that the system keeps, none where there is no such file or it is not for us."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
