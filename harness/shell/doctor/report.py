"""Print the findings of `evenbench doctor`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from harness.core.machine.noise import Noise
from harness.core.runs.autotune import TunedExecution
from harness.shell.doctor.findings import DeviceLimit, Findings, FrameworkState, Host, Storage
from harness.shell.doctor.timings import verdict
from harness.shell.environment.cards import Card
from harness.shell.reports.tables import plain_table
from harness.shell.session.autotune import label

UNKNOWN = "n/a"


def print_findings(findings: Findings, console: Console) -> None:
    """Print all findings, the problems last."""
    parts = [
        frameworks_table(findings.version, findings.python, findings.frameworks, findings.extras),
        _pairs_table("Machine", _host_pairs(findings.host)),
        _limits_table(findings.limits),
        *([_executions_table(findings.choices)] if findings.choices else []),
        _pairs_table("Noise", _noise_pairs(findings.noise)),
        _pairs_table("Storage", _storage_pairs(findings.storage)),
    ]
    for part in parts:
        console.print(part)
        console.print()
    if not findings.problems:
        console.print("No problems.")
    for number, problem in enumerate(findings.problems, start=1):
        title = "BROKEN" if problem.broken else "Problem"
        console.print(f"{title} {number}: {problem.what}", markup=False, soft_wrap=True)
        if problem.advice:
            console.print(f"   to do: {problem.advice}", markup=False, soft_wrap=True)


def frameworks_table(
    version: str, python: str, states: Iterable[FrameworkState], extras: Mapping[str, str]
) -> Table:
    """A row per framework, then one per missing extra with the command that installs it."""
    table = plain_table(f"evenbench {version}, Python {python}")
    for name in ("framework", "versions", "import s", "executions", "devices"):
        table.add_column(name, justify="right" if name == "import s" else "left", overflow="fold")
    for state in states:
        table.add_row(state.name, *map(escape, _framework_cells(state)))
    for extra, command in extras.items():
        table.add_row(f"extra {extra}", escape(f"not installed: {command}"))
    return table


def _framework_cells(state: FrameworkState) -> tuple[str, str, str, str]:
    versions = ", ".join(f"{name} {version or 'missing'}" for name, version in state.versions.items())
    if not state.works:
        return f"{versions}: {state.install}" if state.install else versions, "", "can't be used", ""
    devices = [f"{device}: {', '.join(names) or 'none'}" for device, names in state.devices.items()]
    return versions, f"{state.import_s:.1f}", ", ".join(state.executions), "; ".join(devices)


def _host_pairs(host: Host) -> Iterable[tuple[str, str]]:
    bound = "" if host.quota is None else f", a quota of {host.quota:g}"
    yield "processor", f"{host.cpu} ({host.architecture})"
    yield "cores", f"{host.cores}, {host.affinity} of them usable{bound}"
    if host.memory_mb is None:
        yield "memory", UNKNOWN
    else:
        yield "memory", "{:.1f} GB, {:.1f} GB available".format(*(mb / 1000 for mb in host.memory_mb))
    yield "load", f"{host.load:.2f} in the last minute"
    yield "governor", ", ".join(host.governors) or UNKNOWN
    yield "cards", "; ".join(map(_card, host.cards)) or "none"
    counters = [f"{name}{'' if can else ' (not readable)'}" for name, can in host.energy_counters.items()]
    counters += [f"{card.name} (NVML)" for card in host.cards if card.energy]
    yield "energy", ", ".join(counters) or UNKNOWN


def _card(card: Card) -> str:
    memory = UNKNOWN if card.memory_mb is None else f"{card.memory_mb / 1000:.0f} GB"
    return f"{card.name}, memory {memory}, driver {card.driver or UNKNOWN}"


def _limits_table(limits: Sequence[DeviceLimit]) -> Table:
    table = plain_table("Matrix limit")
    for name in ("device", "precision", "threads", "GFLOP/s", "rows", "measured"):
        right = name in ("threads", "GFLOP/s", "rows")
        table.add_column(name, justify="right" if right else "left", overflow="fold")
    for device_limit in limits:
        limit = device_limit.limit
        when = "now" if device_limit.new else limit.measured
        measured = f"{when} by {limit.framework}, load {limit.load:.1f}" + ", disturbed" * limit.disturbed
        numbers = str(limit.threads), f"{limit.gflops:,.1f}", str(limit.size)
        table.add_row(device_limit.device, limit.precision, *numbers, measured)
    return table


def _executions_table(executions: Sequence[TunedExecution]) -> Table:
    table = plain_table("execution=best")
    for name in ("model", "framework", "data", "optimizer", "batch", "precision", "device", "chosen"):
        table.add_column(name, overflow="fold")
    table.add_column("ms per step (compiled in s)", overflow="fold")
    table.add_column("measured", overflow="fold")
    for tuned in executions:
        keys = ("model", "framework", "data", "optimizer", "batch_size", "precision")
        words = [str(tuned.program.get(key, UNKNOWN)) for key in keys]
        device = f"{tuned.program.get('device')}, threads={tuned.program.get('threads')}"
        times = [f"{label(one, tuned)} {one.step_ms:.3g} ({one.compile_s or 0:.1f})" for one in tuned.ranked]
        times += [f"{label(one, tuned)}: {one.reason}" for one in tuned.candidates if one.reason]
        measured = f"{tuned.measured}, load {tuned.load:.1f}" + ", disturbed" * bool(tuned.disturbed)
        table.add_row(*words, device, label(tuned, tuned), "; ".join(times), measured)
    return table


def _noise_pairs(noise: Noise | None) -> Iterable[tuple[str, str]]:
    if noise is None:
        yield "verdict", UNKNOWN
        return
    ratio = noise.ratio
    yield "verdict", verdict(noise)
    yield "A/A ratio", f"{ratio.estimate:.4f}, 95 % interval {ratio.low:.4f} to {ratio.high:.4f}"
    yield "pairs", f"{ratio.pairs}, {1000 * noise.part_s:.1f} ms per side"
    yield "spread", f"quartiles {noise.spread:.1%} apart, the slowest {noise.slowest:.2f} times the median"
    yield "CPU time", f"{noise.cpu_share:.1%} of the wall time, {noise.switches} involuntary context switches"
    yield "steal", UNKNOWN if noise.steal is None else f"{noise.steal:.2%} of all processors' time"


def _storage_pairs(storage: Storage) -> Iterable[tuple[str, str]]:
    state = "writable" if storage.writable else "NOT writable"
    yield "results", f"{storage.results_dir}: {state}, {storage.free_gb:.1f} GB free, {storage.runs} runs"
    tracked = "does not exist yet" if storage.tracked is None else f"{storage.tracked} runs and studies"
    yield "MLflow store", f"{storage.store}: {tracked}"


def _pairs_table(title: str, pairs: Iterable[tuple[str, str]]) -> Table:
    table = plain_table(title)
    table.show_header = False
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for pair in pairs:
        table.add_row(*pair)
    return table
