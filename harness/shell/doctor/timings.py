"""The matrix limits of all devices, as far as they are not known, and how noisy the machine is."""

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

MUCH_STEAL = 0.01
LITTLE_TIME = 0.98  # of a core that is ours alone


def measure_limits(
    results_dir: Path,
    frameworks: Sequence[FrameworkConfig],
    devices: Sequence[str],
    again: bool,
    tell: Callable[[str], None],
) -> tuple[list[DeviceLimit], list[Problem]]:
    """The limit of each device in each of its precisions, with one thread and on a CPU with all cores' too.

    `frameworks` are asked in this order. `again` measures what is known as well, as is always done
    with what was disturbed; the higher limit is kept.
    """
    found: list[DeviceLimit] = []
    problems: list[Problem] = []
    for device in devices:
        counts = sorted({1, host.usable_cores()}) if device == "cpu" else [1]
        for precision in precisions(device):
            for threads in counts:
                kept = None if again else _kept(results_dir, frameworks, device, precision, threads)
                if kept is not None:
                    found.append(kept)
                    continue
                tell(f"measuring the matrix limit: {device}, {precision}, threads={threads}")
                reasons = []
                for framework in frameworks:
                    key = WorkerKey.on(framework, device, precision, threads)
                    try:
                        limit = matmul_limits.measure_limit(results_dir, framework, key, None)
                    except (WorkerDiedError, matmul_limits.ProbeError) as error:
                        reasons.append(f"{framework.name}: {error}")
                        continue
                    found.append(DeviceLimit(device, limit, new=True))
                    break
                else:
                    what = f"the matrix limit of {device} in {precision} can't be measured"
                    problems.append(Problem(what, "; ".join(reasons)))
    doubtful = [f"{one.device} {one.limit.precision}" for one in found if one.limit.disturbed]
    if doubtful:
        what = f"other work disturbed the measurement of matrix limits: {', '.join(dict.fromkeys(doubtful))}"
        problems.append(Problem(what, "the same command again when the machine is quiet"))
    return found, problems


def measure_noise(framework: FrameworkConfig) -> tuple[Noise | None, list[Problem]]:
    """Compare a framework with itself on one thread of the CPU, and say what that means for comparisons."""
    worker = Worker(WorkerKey.on(framework, "cpu", "float32", 1))
    try:
        said = worker.probe(noise=True)
    except WorkerDiedError as error:
        said = {"error": str(error)}
    finally:
        worker.close()
    if "noise" not in said:
        return None, [Problem(f"the noise can't be measured: {said.get('error')}", "")]
    noise = parse(Noise, said["noise"])
    return noise, _of_noise(noise)


def verdict(noise: Noise) -> str:
    """What the noise means for those who compare frameworks."""
    few = f"ratios below ±{noise.blur:.1%} can't be told from 1 with {USUAL_PAIRS} pairs"
    many = f"nor below ±{noise.blur_of_all:.1%} with {noise.ratio.pairs}"
    return f"{'quiet' if noise.quiet else 'noisy'}: {few}, {many}"


def _of_noise(noise: Noise) -> list[Problem]:
    problems = []
    if not noise.quiet:
        advice = (
            "stop other programs, compare with more pairs (repeat=range(20)), or use a machine of your own"
        )
        problems.append(Problem(f"the machine is {verdict(noise)}", advice))
    if noise.steal is not None and noise.steal > MUCH_STEAL:
        what = f"a hypervisor gave {noise.steal:.1%} of the processors' time to others"
        problems.append(Problem(what, "a machine whose cores are not shared"))
    if noise.cpu_share < LITTLE_TIME:
        what = f"a thread that wanted all of a core got {noise.cpu_share:.0%} of it"
        problems.append(Problem(what, "fewer threads at a time than cores"))
    return problems


def _kept(
    results_dir: Path, frameworks: Sequence[FrameworkConfig], device: str, precision: str, threads: int
) -> DeviceLimit | None:
    """A limit that is known and that nothing disturbed."""
    for framework in frameworks:
        known = matmul_limits.stored_limit(
            results_dir, matmul_limits.describe_device(framework, device), precision, threads
        )
        if known is not None and not known.disturbed:
            return DeviceLimit(device, known, new=False)
    return None
