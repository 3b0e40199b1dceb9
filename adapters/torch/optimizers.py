"""The update rules in torch: torch.optim, and the harness's shared rule on torch tensors.

torch.optim agrees to rounding with all six rules of `harness.core.training.optimizers` (RMSprop adds epsilon
outside the root, Adam after the correction; SGD's weight decay is coupled, AdamW's is not), so this module
only maps names.
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
    """The harness's shared update rule behind torch's optimizer interface.

    Every number is a scalar tensor of the parameters' dtype, as in a compiled step, so that all executions
    round alike.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], rule: Rule) -> None:
        super().__init__(parameters, {"lr": rule.learning_rate})
        self._parameters: list[nn.Parameter] = self.param_groups[0]["params"]
        self.rule = rule
        self.slots = zero_slots(rule, self._parameters)
        self._numbers = numbers(rule, self._parameters[0])
        self.steps = 0

    @torch.no_grad()
    def step(self, closure: object = None) -> None:  # type: ignore[override]
        """Update the parameters from their current gradients, at the group's `lr`."""
        self.steps += 1
        like = self._parameters[0]
        rate, t = scalar(self.param_groups[0]["lr"], like), scalar(self.steps, like)
        for parameter, state in zip(self._parameters, self.slots, strict=True):
            assert parameter.grad is not None
            new, updated = self.rule.update(parameter, parameter.grad, state, self._numbers, rate, t)
            parameter.copy_(new)
            state.update(updated)


def scalar(value: float, like: Tensor) -> Tensor:
    """Return a scalar tensor with the dtype and device of `like`."""
    return torch.tensor(value, dtype=like.dtype, device=like.device)


def numbers(rule: Rule, like: Tensor) -> dict[str, Tensor]:
    """Return the rule's numbers except the learning rate, as scalar tensors."""
    return {name: scalar(value, like) for name, value in optimizers.numbers(rule).items()}


def zero_slots(rule: Rule, parameters: Sequence[Tensor]) -> list[Slots]:
    """Return zeroed slots of the rule for each parameter."""
    return [{name: torch.zeros_like(p) for name in rule.slots} for p in parameters]


def update(
    rule: Rule, weight: Tensor, gradient: Tensor, slots: Slots, numbers: Slots, lr: Tensor, t: Tensor
) -> None:
    """Apply the rule to one parameter in place, as captured and compiled steps need. Not for autograd."""
    new, updated = rule.update(weight, gradient, slots, numbers, lr, t)
    weight.copy_(new)
    for slot, value in updated.items():
        slots[slot].copy_(value)


def make(
    rule: Rule, parameters: Sequence[nn.Parameter], fused: bool, capturable: bool = False
) -> torch.optim.Optimizer:
    """Build the optimizer of a run, with zero state.

    `fused`: use torch's fused kernel if the optimizer has one; `capturable`: its steps are captured in a CUDA
    graph, so all its state has to be on the GPU.
    """
    if rule.impl == "shared":
        return SharedRule(parameters, rule)
    kind, arguments = _native(rule)
    arguments["lr"] = rule.learning_rate
    if fused and "fused" in inspect.signature(kind).parameters:
        arguments["fused"] = True
    if capturable and "capturable" in inspect.signature(kind).parameters:
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
"""torch.optim's names of each rule's slots."""


def read_slots(optimizer: torch.optim.Optimizer, rule: Rule) -> list[Slots]:
    """Return the slots of each parameter, by the rule's names; zeros where the optimizer has none yet."""
    if isinstance(optimizer, SharedRule):
        return optimizer.slots
    names = NATIVE_SLOTS[rule.name]
    slots: list[Slots] = []
    for parameter in optimizer.param_groups[0]["params"]:
        state = optimizer.state.get(parameter, {})  # indexing would create an entry
        values = {slot: state.get(native) for slot, native in names.items()}
        slots.append({s: torch.zeros_like(parameter) if v is None else v for s, v in values.items()})
    return slots


def load_slots(optimizer: torch.optim.Optimizer, rule: Rule, steps: int, slots: list[Slots]) -> None:
    """Set the step count and the slots of each parameter, without copying the tensors."""
    if isinstance(optimizer, SharedRule):
        optimizer.slots, optimizer.steps = slots, steps
        return
    names = NATIVE_SLOTS[rule.name]
    for parameter, values in zip(optimizer.param_groups[0]["params"], slots, strict=True):
        # torch stores the count on the parameter's device for kernels that read it there, else on the host
        on_device = optimizer.defaults.get("fused") or optimizer.defaults.get("capturable")
        device = parameter.device if on_device else torch.device("cpu")
        count = torch.tensor(float(steps), dtype=torch.float32, device=device)
        optimizer.state[parameter] = {"step": count} | {names[slot]: value for slot, value in values.items()}


def describe(optimizer: torch.optim.Optimizer) -> dict[str, object]:
    """Describe the code that updates the weights: its class, and whether it is one fused kernel."""
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
