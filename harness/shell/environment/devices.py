"""The devices of this machine, and what `device=auto` and `device=cuda` mean on it.

`auto` is resolved before a run is identified, so that its folder names the device: `cuda` if there are a card
and a framework built for one, else `cpu`. `cuda` means any of the cards; which of several equal cards is used
does not affect a result, so the runs of a sweep are spread over them. A worker sees only the card that it
uses, and calls it `cuda`.
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
from harness.shell.environment.cards import VISIBLE, Card, visible_cards
from harness.shell.environment.versions import look_up

CPU, ANY_CARD, AUTO = "cpu", "cuda", "auto"


def devices_of(config: RunConfig) -> tuple[str, ...]:
    """The devices on which a run may execute: `("cpu",)`, or cards by number, `("cuda:0", "cuda:1")`.

    `config` is resolved. If no card is known, `cuda` stays as it is.
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
    """Raise ConfigError for cards that this machine lacks, and for what its cards can't do."""
    mistakes: list[Mistake] = []
    for config in configs:
        if config.device == CPU:
            continue
        for card in map(_card, devices_of(config)):
            if card is None:
                allowed = "; ".join(["cpu", *(f"cuda:{n} ({one.name})" for n, one in enumerate(_cards()))])
                mistakes.append(Mistake("device", f"this machine has no {config.device!r}", allowed))
            else:
                mistakes += precision.mistakes(config.precision, config.device, card.capability)
    if mistakes:
        raise ConfigError(mistakes)


def precisions(device: str) -> tuple[Precision, ...]:
    """The precisions that a device supports."""
    card = _card(device)
    capability = None if card is None else card.capability
    every: tuple[Precision, ...] = get_args(Precision)
    return tuple(one for one in every if not precision.mistakes(one, device, capability))


def worker_environment(device: str) -> dict[str, str]:
    """The environment variables with which a worker sees only its own card, or none on the CPU."""
    if device == CPU:
        return {VISIBLE: ""}
    card = _card(device)
    # number the cards by their position on the bus, as nvidia-smi does; CUDA's default puts the fastest first
    variables = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    return variables | ({} if card is None else {VISIBLE: card.id})


def _prefers_card(config: RunConfig) -> bool:
    """Whether `auto` means a card: all cards support the run, and the framework can use them."""
    capabilities = [card.capability for card in _cards()]
    able = capabilities and not any(
        precision.mistakes(config.precision, ANY_CARD, capability) for capability in capabilities
    )
    executions = config.framework.executions.get(ANY_CARD) or ()
    possible = config.execution in executions or (bool(executions) and config.execution == BEST)
    return bool(able) and possible and _is_built_for_cards(config.framework)


def _is_built_for_cards(framework: FrameworkConfig) -> bool:
    """Whether the installed framework supports CUDA, judging by its packages.

    Builds without CUDA have versions such as `2.13.0+cpu`; some frameworks need additional packages.
    """
    versions = look_up(framework, framework.distributions)
    if any(str(version).endswith("+cpu") for version in versions.values()):
        return False
    cuda_versions = look_up(framework, framework.cuda_distributions)
    return not cuda_versions or any(version is not None for version in cuda_versions.values())


def _card(device: str) -> Card | None:
    """The card named `cuda:1`, or the first one for `cuda`; None if it does not exist."""
    number, cards = int(device.partition(":")[2] or 0), _cards()
    return cards[number] if number < len(cards) else None


def _cards() -> tuple[Card, ...]:
    return _cards_of(os.environ.get(VISIBLE))


@functools.cache
def _cards_of(visible: str | None) -> tuple[Card, ...]:
    """The visible cards, cached: starting NVIDIA's library takes as long as hundreds of small steps."""
    environment: Mapping[str, str] = {} if visible is None else {VISIBLE: visible}
    return visible_cards(environment)
