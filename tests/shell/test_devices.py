"""The device of a run: `auto`, cards by number, what a worker sees, and how runs are spread.

A fake module replaces NVIDIA's library, so that tests can have any cards.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.core.config.run_config import RunConfig
from harness.core.machine import energy
from harness.core.machine import host as machine
from harness.core.validation import ConfigError
from harness.shell.engines import slots
from harness.shell.environment import cards, devices
from harness.shell.workers.key import WorkerKey
from tests.support.compose import composing, config_of

LIBRARY = """
import json, os, pathlib
CARDS = json.loads(pathlib.Path(__file__).with_name("cards.json").read_text())
class NVMLError(Exception): pass
def nvmlInit(): pass
def nvmlShutdown(): pass
def nvmlSystemGetDriverVersion(): return "570.1"
def nvmlDeviceGetCount(): return len(CARDS)
def nvmlDeviceGetHandleByIndex(index): return CARDS[index]
def nvmlDeviceGetHandleByUUID(uuid):
    for card in CARDS:
        if card["uuid"] == uuid: return card
    raise NVMLError("not found")
def nvmlDeviceGetName(card): return card["name"]
def nvmlDeviceGetUUID(card): return card["uuid"]
def nvmlDeviceGetCudaComputeCapability(card): return card["capability"]
def nvmlDeviceGetMemoryInfo(card): raise NVMLError("not supported")
def nvmlDeviceGetTotalEnergyConsumption(card):
    if "mj" not in card: raise NVMLError("not supported")
    return card["mj"]
class Process:
    pid, usedGpuMemory = os.getpid(), 512_000_000
def nvmlDeviceGetComputeRunningProcesses(card): return [Process]
"""

H100 = {"name": "H100", "uuid": "GPU-aaaa", "capability": [9, 0], "mj": 1000}
SECOND = H100 | {"uuid": "GPU-bbbb"}
T4 = {"name": "T4", "uuid": "GPU-cccc", "capability": [7, 5]}

Host = Callable[..., None]


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """`host(H100, T4, visible="1")` makes this machine one with these cards."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(machine, "PROC", tmp_path)
    monkeypatch.setattr(machine, "DEV", tmp_path)
    number = 0

    def make(*fake_cards: dict[str, Any], visible: str | None = None) -> None:
        nonlocal number
        number += 1  # a new module each time, because Python's cache compares coarse modification times
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "pynvml.py").write_text(LIBRARY)
        (folder / "cards.json").write_text(json.dumps(fake_cards))
        monkeypatch.syspath_prepend(str(folder))
        monkeypatch.delitem(sys.modules, "pynvml", raising=False)
        if visible is None:
            monkeypatch.delenv(cards.VISIBLE, raising=False)
        else:
            monkeypatch.setenv(cards.VISIBLE, visible)
        devices._cards_of.cache_clear()

    yield make
    devices._cards_of.cache_clear()


@pytest.fixture(scope="module")
def base() -> RunConfig:
    with composing():
        return config_of("framework=torch")


@pytest.fixture
def built_for_cards(monkeypatch: pytest.MonkeyPatch) -> dict[str, str | None]:
    """The installed versions, which a test may change."""
    versions: dict[str, str | None] = {"torch": "2.13.0"}
    monkeypatch.setattr(devices, "look_up", lambda _, names: {name: versions.get(name) for name in names})
    return versions


def refusal(*configs: RunConfig) -> str:
    """The message with which `check_devices` refuses runs; empty if it accepts them."""
    try:
        devices.check_devices(configs)
    except ConfigError as error:
        return str(error)
    return ""


def test_auto_uses_a_card_if_everything_it_needs_is_installed(
    host: Host, base: RunConfig, built_for_cards: dict[str, str | None]
) -> None:
    """Catches: `auto` resolved to a card that does not exist, for a framework without CUDA, or for an
    execution or a precision that the card does not support; and to the CPU although a card is usable."""
    auto = replace(base, device="auto")
    host(H100)
    assert devices.resolve_device(auto).device == "cuda"
    framework = auto.framework
    without_epoch = replace(framework, executions={"cpu": ["epoch"], "cuda": ["eager"]})
    assert devices.resolve_device(replace(auto, execution="epoch")).device == "cuda"
    assert devices.resolve_device(replace(auto, execution="epoch", framework=without_epoch)).device == "cpu"
    cpu_only = replace(framework, executions={"cpu": ["eager"]})
    assert devices.resolve_device(replace(auto, framework=cpu_only)).device == "cpu"
    with_plugin = replace(auto, framework=replace(framework, cuda_distributions=("plugin-13", "plugin-12")))
    assert devices.resolve_device(with_plugin).device == "cpu"
    built_for_cards["plugin-12"] = "1.0"
    assert devices.resolve_device(with_plugin).device == "cuda"
    built_for_cards["torch"] = "2.13.0+cpu"
    assert devices.resolve_device(auto).device == "cpu"
    built_for_cards["torch"] = "2.13.0+cu130"
    assert devices.resolve_device(auto).device == "cuda"
    host(T4)
    assert devices.resolve_device(auto).device == "cuda"
    assert devices.resolve_device(replace(auto, precision="bf16")).device == "cpu"
    host(H100, visible="")
    assert devices.resolve_device(auto).device == "cpu"
    host()
    assert devices.resolve_device(auto).device == "cpu"
    assert devices.resolve_device(base).device == "cpu"


def test_tf32_without_a_card_is_refused_with_alternatives(host: Host, base: RunConfig) -> None:
    """Catches: a run in float32 that is recorded as TF32."""
    host()
    for device in ("cpu", "auto"):
        with pytest.raises(ConfigError, match=r"precision: a CPU has no tf32\n.*float32, float64, bf16"):
            devices.resolve_device(replace(base, device=device, precision="tf32"))


def test_cards_are_checked_against_the_existing_ones(host: Host, base: RunConfig) -> None:
    """Catches: a run that fails in its worker, minutes later, because the card does not exist; a message
    without the existing cards; bf16 on a card that computes it in float32."""
    host(H100, T4)
    assert not refusal(base, replace(base, device="cuda:1"), replace(base, device="cuda:0", precision="tf32"))
    message = refusal(replace(base, device="cuda:2"))
    assert "this machine has no 'cuda:2'" in message and "cpu; cuda:0 (H100); cuda:1 (T4)" in message
    assert "compute capability 7.5" in refusal(replace(base, device="cuda", precision="bf16"))
    assert "float32, float64" in refusal(replace(base, device="cuda:1", precision="tf32"))
    host()
    assert "this machine has no 'cuda'" in refusal(replace(base, device="cuda"))
    assert not refusal(base)


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        (None, ["H100", "T4"]),
        ("1,0", ["T4", "H100"]),
        ("GPU-cc", ["T4"]),
        ("0,7,1", ["H100"]),
        ("", []),
        ("MIG-1234", ["MIG-1234"]),
    ],
)
def test_cards_that_the_environment_hides_do_not_count(
    visible: str | None, names: list[str], host: Host, base: RunConfig
) -> None:
    """Catches: cards that a batch system has hidden; an order other than CUDA's."""
    host(H100, T4, visible=visible)
    assert [card.name for card in cards.visible_cards()] == names
    every = tuple(f"cuda:{number}" for number in range(len(names))) or ("cuda",)
    assert devices.devices_of(replace(base, device="cuda")) == every
    assert devices.devices_of(replace(base, device="cuda:1")) == ("cuda:1",)
    assert devices.devices_of(base) == ("cpu",)


def test_a_worker_sees_only_its_own_card(host: Host, base: RunConfig) -> None:
    """Catches: a second worker on the first card; a framework that allocates memory on all cards; a numbering
    other than nvidia-smi's; a worker on the CPU that sees cards."""
    host(H100, SECOND, visible="1,0")

    def environment(device: str) -> dict[str, str]:
        return WorkerKey.of(replace(base, device=device)).environment()

    assert environment("cuda:0")[cards.VISIBLE] == environment("cuda")[cards.VISIBLE] == "GPU-bbbb"
    assert environment("cuda:1")[cards.VISIBLE] == "GPU-aaaa"
    assert environment("cuda")["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert environment("cuda")["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false"
    assert environment("cpu")[cards.VISIBLE] == ""


def slots_for(*configs: RunConfig) -> list[tuple[str, bool]]:
    """The device of each slot for such runs, and whether the slot accepts the first run."""
    runs: Any = [SimpleNamespace(config=config) for config in configs]
    return [(spec.device, spec.accepts(runs[0])) for spec in slots.slot_specs(runs)]


def test_runs_are_spread_over_the_cards_unless_they_are_compared(host: Host, base: RunConfig) -> None:
    """Catches: idle cards during a sweep; compared runs that disturb each other's times on the host; a slot
    that accepts runs of another card; a worker that does not use the slot's card."""
    host(H100, SECOND)
    run = replace(base, device="cuda")
    assert slots_for(run) == [("cuda:0", True), ("cuda:1", True)]
    assert slots_for(replace(run, device="cuda:1"), replace(run, device="cuda:1", seed=1)) == [("", True)]
    other = replace(run, framework=replace(run.framework, name="other"))
    assert slots_for(run, other) == [("", True)]
    assert len(slots_for(replace(run, timings="shared"), replace(other, timings="shared"))) == 2
    assert [device for device, _ in slots_for(replace(run, workers=2))] == ["cuda:0"] * 2 + ["cuda:1"] * 2
    assert slots_for(base) == [("", True)]
    spec = slots.SlotSpec("cuda:1 1", "cuda:1")
    assert spec.worker_key(WorkerKey.of(run)).device == "cuda:1"
    assert not spec.accepts(SimpleNamespace(config=replace(run, device="cuda:0")))  # type: ignore[arg-type]


def test_the_energy_and_memory_of_the_card_that_a_worker_sees(host: Host) -> None:
    """Catches: the counter of another card; millijoules instead of joules; a reading of a card without a
    counter, or of one of several cards when the worker's own is unknown; the memory of another process."""
    host(T4, H100)
    card = energy.own_card({cards.VISIBLE: "GPU-aaaa"})
    assert card is not None and (card.of, card.driver) == ("H100", "570.1")
    assert card.joules_between({"card": 1_000_000}, card.read() | {"card": 3_500_000}) == 2.5
    assert card.read() == {"card": 1_000_000}
    assert card.process_mb() == 512.0
    assert energy.own_card({}) is None and energy.own_card({cards.VISIBLE: "GPU-zz"}) is None
    silent = energy.EnergyMeter(energy.own_card({cards.VISIBLE: "0"}))
    silent.begin()
    assert silent.end() == {} and silent.describe() == {"source": "n/a"}
    host(H100)
    alone = energy.own_card({})
    assert alone is not None and alone.of == "H100"
