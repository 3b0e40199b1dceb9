"""What the doctor reads from the system: processor, memory, control groups, graphics cards."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from harness.core.machine import host as machine
from harness.core.machine.host import Ticks
from harness.shell.doctor import host
from harness.shell.environment.cards import cards


def tree(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with `proc`, `sys` and `dev` that replace the system's."""
    for name in ("PROC", "SYS", "DEV"):
        monkeypatch.setattr(machine, name, tmp_path / name.lower())
    return tmp_path


def test_a_system_without_information(system: Path) -> None:
    """Catches: a crash, or a guess, if a file does not exist, as on other systems and in containers."""
    assert machine.cpu_model()
    assert machine.quota() is None and machine.memory_mb() is None and machine.ticks() is None
    assert machine.steal_since(None) is None and machine.available_cores_since(None, 1.0, 1.0) is None
    assert machine.cards() == () and machine.governors() == () and machine.energy_counters() == {}


def test_the_information_of_the_system(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: pages read as kilobytes, guest time counted twice, idle time counted as work or steal, the
    quota of a group without that of its parents, a counter that only root may read reported as readable, the
    governor of one core reported for all."""
    tree(
        system,
        {
            "proc/cpuinfo": "processor\t: 0\nmodel name\t: EPYC 9\nprocessor\t: 1\nmodel name\t: EPYC 9\n",
            "proc/meminfo": "MemTotal: 1000000 kB\nMemFree: 1 kB\nMemAvailable: 500000 kB\n",
            "proc/stat": "cpu  100 0 100 700 0 0 0 100 100 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n",
            "proc/self/cgroup": "0::/jobs/mine\n",
            "proc/driver/nvidia/gpus/0000:01:00.0/information": "Model: \t\t NVIDIA A100\nIRQ: 1\n",
            "sys/fs/cgroup/jobs/mine/cpu.max": "max 100000\n",
            "sys/fs/cgroup/jobs/cpu.max": "150000 100000\n",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "performance\n",
            "sys/devices/system/cpu/cpu1/cpufreq/scaling_governor": "powersave\n",
            "sys/class/powercap/intel-rapl:0/energy_uj": "12345\n",
            "sys/class/powercap/intel-rapl:0/name": "package-0\n",
            "sys/class/powercap/intel-rapl:1/name": "package-1\n",
        },
    )
    (system / "sys/class/powercap/intel-rapl:1/energy_uj").mkdir()  # unreadable even for root
    assert machine.cpu_model() == "EPYC 9"
    assert machine.memory_mb() == (1024.0, 512.0)
    assert machine.quota() == 1.5
    monkeypatch.setattr(machine, "allowed_cores", lambda: list(range(8)))
    assert machine.usable_cores() == 1
    assert machine.cards() == ("NVIDIA A100",)
    before = machine.ticks()
    assert before == Ticks(1000, 700, 100)
    tree(system, {"proc/stat": "cpu  140 0 100 710 10 0 0 140 100 0\n"})
    assert machine.steal_since(before) == 0.4
    monkeypatch.setattr(os, "cpu_count", lambda: 10)
    assert machine.available_cores_since(before, wall_s=2.0, cpu_s=1.0) == pytest.approx(
        2.5
    )  # 2 cores idle, half of one used by this process
    assert machine.energy_counters() == {"intel-rapl:0 package-0": True, "intel-rapl:1 package-1": False}
    assert machine.governors() == ("performance", "powersave")
    text = "\n".join(problem.what for problem in host.host()[1])
    for part in ("1.5 of 8 cores", "governor powersave", "512 MB of memory", "intel-rapl:1 package-1"):
        assert part in text, text
    assert "intel-rapl:0" not in text


def test_the_quota_of_control_groups_version_1(system: Path) -> None:
    """Catches: sixteen threads on the two cores of a container."""
    group = "sys/fs/cgroup/cpu/docker/abc/cpu.cfs"
    tree(system, {f"{group}_quota_us": "200000\n", f"{group}_period_us": "100000\n"})
    tree(system, {"proc/self/cgroup": "5:memory:/else\n4:cpu,cpuacct:/docker/abc\n"})
    assert machine.quota() == 2.0
    tree(system, {f"{group}_quota_us": "-1\n"})
    assert machine.quota() is None


NVML = """
class NVMLError(Exception): pass
class Memory: total = 80_000_000_000
def nvmlInit():
    if {broken}: raise NVMLError("no driver")
def nvmlShutdown(): pass
def nvmlSystemGetDriverVersion(): return b"570.1"
def nvmlDeviceGetCount(): return 2
def nvmlDeviceGetHandleByIndex(index): return index
def nvmlDeviceGetName(handle): return f"H100 {{handle}}"
def nvmlDeviceGetUUID(handle): return f"GPU-{{handle}}"
def nvmlDeviceGetCudaComputeCapability(handle): return 9, 0
def nvmlDeviceGetMemoryInfo(handle): return Memory
def nvmlDeviceGetTotalEnergyConsumption(handle):
    if handle: raise NVMLError("not supported")
    return 1
"""


def test_cards(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: cards that are lost because the library or its driver is missing; an energy counter reported
    for a card without one; a name in bytes."""
    monkeypatch.syspath_prepend(str(system))
    monkeypatch.delitem(sys.modules, "pynvml", raising=False)
    tree(system, {"pynvml.py": NVML.format(broken="False")})
    first, second = cards()
    assert (first.name, first.driver, first.memory_mb, first.energy) == ("H100 0", "570.1", 80_000.0, True)
    assert (first.id, first.capability) == ("GPU-0", (9, 0))
    assert second.energy is False
    monkeypatch.delitem(sys.modules, "pynvml")
    tree(system, {"pynvml.py": NVML.format(broken="not False"), "dev/nvidia0": "", "dev/nvidiactl": ""})
    (card,) = cards()
    assert (card.name, card.driver, card.energy) == ("NVIDIA nvidia0", None, None)
