"""Which devices there are for runs, and what `device=auto` and `device=cuda` come to.

`auto` is resolved before a run is identified, so that its folder says what it ran on: `cuda` where a card and
a framework that was built for one are there, else `cpu`. `cuda` is any of the cards, since it makes no
difference to a result which of equals it is: the runs of a sweep are spread over them. A worker sees one card
only, the one that it is to use, and calls it `cuda`.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import get_args

from harness.core.adapter import Precision
from harness.core.config.checks import BEST
from harness.core.config.run_config import FrameworkConfig, RunConfig
from harness.core.machine import precision
from harness.core.validation import ConfigError, Mistake
from harness.shell.environment import cards
from harness.shell.environment.cards import VISIBLE, Card
from harness.shell.environment.versions import look_up

CPU, ANY_CARD, AUTO = "cpu", "cuda", "auto"


def devices_of(config: RunConfig) -> tuple[str, ...]:
    """The devices that a run may go on on: `("cpu",)`, or cards by number, `("cuda:0", "cuda:1")`.

    `config` is resolved. Where no card is known of, `cuda` is all that can be said.
    """
    if config.device != ANY_CARD:
        return (config.device,)
    return tuple(f"cuda:{number}" for number in range(len(_cards()))) or (ANY_CARD,)


def resolve_device(config: RunConfig) -> RunConfig:
    """The same run with a device in place of `auto`; raises ConfigError for a precision that no CPU has."""
    if config.device == AUTO:
        config = replace(config, device=ANY_CARD if _prefers_card(config) else CPU)
    if config.device == CPU and (mistakes := precision.mistakes(config.precision, CPU)):
        raise ConfigError(mistakes)
    return config


def check_devices(configs: Iterable[RunConfig]) -> None:
    """Raise ConfigError for cards that this machine has not, and for what its cards can't do."""
    mistakes: list[Mistake] = []
    for config in configs:
        if config.device == CPU:
            continue
        for card in map(_card, devices_of(config)):
            if card is None:
                known = "; ".join(["cpu", *map(_described, enumerate(_cards()))])
                mistakes.append(Mistake("device", f"no {config.device!r} is here", known))
            else:
                mistakes += precision.mistakes(config.precision, config.device, card.capability)
    if mistakes:
        raise ConfigError(mistakes)


def precisions(device: str) -> tuple[Precision, ...]:
    """Those that a device has."""
    card = _card(device)
    capability = None if card is None else card.capability
    every: tuple[Precision, ...] = get_args(Precision)
    return tuple(one for one in every if not precision.mistakes(one, device, capability))


def worker_environment(device: str) -> dict[str, str]:
    """What hides from a worker every card but its own, and from one on the CPU all of them."""
    if device == CPU:
        return {VISIBLE: ""}
    card = _card(device)
    # numbers mean places on the bus, as they do to nvidia-smi; by default the fastest card is number 0
    order = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    return order | ({} if card is None else {VISIBLE: card.id})


def _prefers_card(config: RunConfig) -> bool:
    """Whether `auto` is a card: any of those that are there, and a framework that can make use of it."""
    there = [card.capability for card in _cards()]
    able = there and not any(precision.mistakes(config.precision, ANY_CARD, one) for one in there)
    executions = config.framework.executions.get(ANY_CARD) or ()
    possible = config.execution in executions or (bool(executions) and config.execution == BEST)
    return bool(able) and possible and _is_built_for_cards(config.framework)


def _is_built_for_cards(framework: FrameworkConfig) -> bool:
    """As far as what is installed says: builds without CUDA are called `2.13.0+cpu`; some need packages."""
    versions = look_up(framework, framework.distributions)
    if any(str(version).endswith("+cpu") for version in versions.values()):
        return False
    needed = look_up(framework, framework.cuda_distributions)
    return not needed or any(version is not None for version in needed.values())


def _described(card: tuple[int, Card]) -> str:
    number, found = card
    return f"cuda:{number} ({found.name})"


def _card(device: str) -> Card | None:
    """The card that `cuda:1` names, or `cuda`, which is the first one; None where there is none."""
    number, there = int(device.partition(":")[2] or 0), _cards()
    return there[number] if number < len(there) else None


def _cards() -> tuple[Card, ...]:
    return _cards_of(os.environ.get(VISIBLE))


@functools.cache
def _cards_of(allowed: str | None) -> tuple[Card, ...]:
    """Asked once: to start NVIDIA's library takes as long as hundreds of small steps."""
    worker_environment: Mapping[str, str] = {} if allowed is None else {VISIBLE: allowed}
    return cards.visible(worker_environment)
