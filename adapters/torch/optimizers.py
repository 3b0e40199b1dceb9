"""The update rules in torch: its own optimizers, and the harness's rule on torch's tensors.

torch.optim agrees with the rules of `harness.core.training.optimizers` to rounding in all six (RMSprop adds
epsilon outside the root, Adam after the correction, SGD's decay is coupled, AdamW's is not), so only names
have to be mapped.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from typing import Any, assert_never

import torch
from torch import Tensor, nn
from torch.optim.optimizer import _default_to_fused_or_foreach

from harness.core.training import optimizers
from harness.core.training.optimizers import Adam, AdamW, Momentum, Nesterov, RMSprop, Rule

Slots = dict[str, Tensor]


class SharedRule(torch.optim.Optimizer):
    """The harness's own update rule behind torch's interface.

    Every number is a scalar tensor of the parameters' dtype, as it is in a compiled step, so that the
    executions round alike.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], rule: Rule) -> None:
        super().__init__(parameters, {"lr": rule.learning_rate})
        self._parameters: list[nn.Parameter] = self.param_groups[0]["params"]
        self.rule = rule
        self.slots = slots(rule, self._parameters)
        self._numbers = numbers(rule, self._parameters[0])
        self.steps = 0

    @torch.no_grad()
    def step(self, closure: object = None) -> None:  # type: ignore[override]
        """One step from the gradients that are there, at the group's `lr`."""
        self.steps += 1
        like = self._parameters[0]
        rate, t = scalar(self.param_groups[0]["lr"], like), scalar(self.steps, like)
        for parameter, state in zip(self._parameters, self.slots, strict=True):
            assert parameter.grad is not None
            new, updated = self.rule.update(parameter, parameter.grad, state, self._numbers, rate, t)
            parameter.copy_(new)
            state.update(updated)


def scalar(value: float, like: Tensor) -> Tensor:
    """A scalar tensor of the dtype and on the device of `like`."""
    return torch.tensor(value, dtype=like.dtype, device=like.device)


def numbers(rule: Rule, like: Tensor) -> dict[str, Tensor]:
    """The rule's numbers besides the learning rate, as scalar tensors."""
    return {name: scalar(value, like) for name, value in optimizers.numbers(rule).items()}


def slots(rule: Rule, parameters: Sequence[Tensor]) -> list[Slots]:
    """The rule's state of each parameter, zero."""
    return [{name: torch.zeros_like(p) for name in rule.slots} for p in parameters]


def update(
    rule: Rule, weight: Tensor, gradient: Tensor, kept: Slots, numbers: Slots, lr: Tensor, t: Tensor
) -> None:
    """A step of the rule for one parameter, in the tensors that hold it and its slots: who recorded or
    compiled the step has no others. Not for autograd."""
    new, updated = rule.update(weight, gradient, kept, numbers, lr, t)
    weight.copy_(new)
    for slot, value in updated.items():
        kept[slot].copy_(value)


def make(
    rule: Rule, parameters: Sequence[nn.Parameter], fused: bool, recorded: bool = False
) -> torch.optim.Optimizer:
    """The optimizer of a run, its state zero. `fused`: torch's fused kernel where the optimizer has one;
    `recorded`: its steps go into a CUDA graph, so that all it needs has to lie on the card."""
    if rule.impl == "shared":
        return SharedRule(parameters, rule)
    kind, arguments = _native(rule)
    arguments["lr"] = rule.learning_rate
    if fused and "fused" in inspect.signature(kind).parameters:
        arguments["fused"] = True
    if recorded and "capturable" in inspect.signature(kind).parameters:
        arguments["capturable"] = True
    return kind(parameters, **arguments)


NATIVE_SLOTS = {
    "sgd": {},
    "momentum": {"velocity": "momentum_buffer"},
    "nesterov": {"velocity": "momentum_buffer"},
    "adam": {"m": "exp_avg", "v": "exp_avg_sq"},
    "adamw": {"m": "exp_avg", "v": "exp_avg_sq"},
    "rmsprop": {"v": "square_avg"},
}
"""What torch.optim calls the slots of each rule."""


def state_of(optimizer: torch.optim.Optimizer, rule: Rule) -> list[Slots]:
    """The slots of each parameter, by the rule's names; zeros for what the optimizer has not made yet."""
    if isinstance(optimizer, SharedRule):
        return optimizer.slots
    names = NATIVE_SLOTS[rule.name]
    found: list[Slots] = []
    for parameter in optimizer.param_groups[0]["params"]:
        kept = optimizer.state.get(parameter, {})  # indexing would make an entry
        values = {slot: kept.get(native) for slot, native in names.items()}
        found.append({s: torch.zeros_like(parameter) if v is None else v for s, v in values.items()})
    return found


def take_state(optimizer: torch.optim.Optimizer, rule: Rule, steps: int, given: list[Slots]) -> None:
    """Go on after `steps` steps with the slots of each parameter, which are taken over and not copied."""
    if isinstance(optimizer, SharedRule):
        optimizer.slots, optimizer.steps = given, steps
        return
    names = NATIVE_SLOTS[rule.name]
    for parameter, state in zip(optimizer.param_groups[0]["params"], given, strict=True):
        # where torch has the count: beside the parameter for a kernel that reads it, else on the host
        beside = optimizer.defaults.get("fused") or optimizer.defaults.get("capturable")
        where = parameter.device if beside else torch.device("cpu")
        count = torch.tensor(float(steps), dtype=torch.float32, device=where)
        optimizer.state[parameter] = {"step": count} | {names[slot]: value for slot, value in state.items()}


def describe(optimizer: torch.optim.Optimizer) -> dict[str, object]:
    """Which code updates the weights: the class, and whether one kernel does it for all parameters."""
    if isinstance(optimizer, SharedRule):
        name = f"harness.core.training.optimizers.{type(optimizer.rule).__name__}"
        return {"optimizer": name, "fused": False, "foreach": False}
    fused, foreach = optimizer.defaults.get("fused"), optimizer.defaults.get("foreach")
    if not fused and foreach is None:
        _, foreach = _default_to_fused_or_foreach(optimizer.param_groups[0]["params"], False, False)
    name = f"torch.optim.{type(optimizer).__name__}"
    return {"optimizer": name, "fused": bool(fused), "foreach": bool(foreach)}


def _native(rule: Rule) -> tuple[type[torch.optim.Optimizer], dict[str, Any]]:
    match rule:
        case optimizers.SGD():
            return torch.optim.SGD, {"weight_decay": rule.weight_decay}
        case Momentum():
            return torch.optim.SGD, {"momentum": rule.momentum, "weight_decay": rule.weight_decay}
        case Nesterov():
            decay = rule.weight_decay
            return torch.optim.SGD, {"momentum": rule.momentum, "weight_decay": decay, "nesterov": True}
        case Adam():
            return torch.optim.Adam, {"betas": (rule.beta_1, rule.beta_2), "eps": rule.epsilon}
        case AdamW():
            betas, decay = (rule.beta_1, rule.beta_2), rule.weight_decay
            return torch.optim.AdamW, {"betas": betas, "eps": rule.epsilon, "weight_decay": decay}
        case RMSprop():
            return torch.optim.RMSprop, {"alpha": rule.rho, "eps": rule.epsilon}
        case _:
            assert_never(rule)
