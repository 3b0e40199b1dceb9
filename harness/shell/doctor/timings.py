"""Measure the matrix limits of all devices, unless they are stored, and how noisy the machine is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from harness.core.config.run_config import FrameworkConfig
from harness.core.machine import host
from harness.core.machine.noise import USUAL_PAIRS, Noise
from harness.core.validation import parse
from harness.shell.doctor.findings import DeviceLimit, Problem
from harness.shell.environment.devices import precisions
from harness.shell.workers import matmul_limits
from harness.shell.workers.key import WorkerKey
from harness.shell.workers.process import Worker, WorkerDiedError

MAX_STEAL = 0.01
MIN_CPU_SHARE = 0.98  # of a core that only this process uses


def measure_limits(
    results_dir: Path,
    frameworks: Sequence[FrameworkConfig],
    devices: Sequence[str],
    again: bool,
    note: Callable[[str], None],
) -> tuple[list[DeviceLimit], list[Problem]]:
    """Measure the limit of each device in each precision, with one thread and on a CPU with all cores too.

    `frameworks` are tried in this order. Stored limits are measured again with `again`, or if they were
    disturbed; the higher value is stored.
    """
    limits: list[DeviceLimit] = []
    problems: list[Problem] = []
    for device in devices:
        counts = sorted({1, host.usable_cores()}) if device == "cpu" else [1]
        for precision in precisions(device):
            for threads in counts:
                stored = None if again else _stored(results_dir, frameworks, device, precision, threads)
                if stored is not None:
                    limits.append(stored)
                    continue
                note(f"measuring the matrix limit: {device}, {precision}, threads={threads}")
                reasons = []
                for framework in frameworks:
                    key = WorkerKey.on(framework, device, precision, threads)
                    try:
                        limit = matmul_limits.measure_limit(results_dir, framework, key, None)
                    except (WorkerDiedError, matmul_limits.ProbeError) as error:
                        reasons.append(f"{framework.name}: {error}")
                        continue
                    limits.append(DeviceLimit(device, limit, new=True))
                    break
                else:
                    what = f"the matrix limit of {device} in {precision} can't be measured"
                    problems.append(Problem(what, "; ".join(reasons)))
    doubtful = [f"{one.device} {one.limit.precision}" for one in limits if one.limit.disturbed]
    if doubtful:
        what = f"other work disturbed the measurement of matrix limits: {', '.join(dict.fromkeys(doubtful))}"
        problems.append(Problem(what, "repeat this command when the machine is quiet"))
    return limits, problems


def measure_noise(framework: FrameworkConfig) -> tuple[Noise | None, list[Problem]]:
    """Compare a framework with itself on one thread of the CPU; return the noise and its problems."""
    worker = Worker(WorkerKey.on(framework, "cpu", "float32", 1))
    try:
        report = worker.probe(noise=True)
    except WorkerDiedError as error:
        report = {"error": str(error)}
    finally:
        worker.close()
    if "noise" not in report:
        return None, [Problem(f"the noise can't be measured: {report.get('error')}", "")]
    noise = parse(Noise, report["noise"])
    return noise, _noise_problems(noise)


def verdict(noise: Noise) -> str:
    """Describe which differences between frameworks the noise hides."""
    few = f"ratios below ±{noise.blur:.1%} can't be distinguished from 1 with {USUAL_PAIRS} pairs"
    many = f"nor below ±{noise.blur_of_all:.1%} with {noise.ratio.pairs}"
    return f"{'quiet' if noise.quiet else 'noisy'}: {few}, {many}"


def _noise_problems(noise: Noise) -> list[Problem]:
    problems = []
    if not noise.quiet:
        advice = "stop other programs, compare with more pairs (repeat=range(20)), or use a dedicated machine"
        problems.append(Problem(f"the machine is {verdict(noise)}", advice))
    if noise.steal is not None and noise.steal > MAX_STEAL:
        what = f"a hypervisor gave {noise.steal:.1%} of the processors' time to other machines"
        problems.append(Problem(what, "use a machine whose cores are not shared"))
    if noise.cpu_share < MIN_CPU_SHARE:
        what = f"a busy thread got {noise.cpu_share:.0%} of a core"
        problems.append(Problem(what, "run fewer threads at a time than cores"))
    return problems


def _stored(
    results_dir: Path, frameworks: Sequence[FrameworkConfig], device: str, precision: str, threads: int
) -> DeviceLimit | None:
    """Return a stored limit that was not disturbed."""
    for framework in frameworks:
        described = matmul_limits.describe_device(framework, device)
        limit = matmul_limits.stored_limit(results_dir, described, precision, threads)
        if limit is not None and not limit.disturbed:
            return DeviceLimit(device, limit, new=False)
    return None
