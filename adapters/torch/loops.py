"""The executions: how the steps of an epoch are driven.

A loop is made when a run loads its weights, with everything fetched out of the step that can be; what is left
in it is what the execution is about. It returns the losses as tensors on the device, not converted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler, TensorDataset

from adapters.torch import optimizers
from adapters.torch.compiling import Gradient, Step
from adapters.torch.model import Criterion, Model
from harness.optim import Rule

Loop = Callable[[Tensor, list[float]], list[Tensor]]
"""(order of rows int64 `[steps, batch]` on the host, learning rate of each step) -> loss of each step"""


@dataclass(frozen=True)
class Run:
    """What a loop works on: `x` and `y` are the training split, on the device but for `idiomatic`."""

    model: Model
    criterion: Criterion
    optimizer: torch.optim.Optimizer
    x: Tensor
    y: Tensor
    batch_size: int
    device: torch.device


class _GivenOrder(Sampler[int]):
    """Yields the rows that the harness asks for, in its order."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    def __iter__(self) -> Iterator[int]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)


def idiomatic(run: Run) -> Loop:
    """The loop of PyTorch's own tutorial: a DataLoader over a TensorDataset on the host."""
    sampler = _GivenOrder()
    # a generator of its own, since the loader draws from it and dropout must not depend on that
    own = torch.Generator()
    rows = TensorDataset(run.x, run.y)
    loader = DataLoader(rows, run.batch_size, sampler=sampler, drop_last=True, generator=own)
    model, criterion, optimizer, device = run.model.module, run.criterion, run.optimizer, run.device

    def epoch(order: Tensor, rates: list[float]) -> list[Tensor]:
        sampler.rows = order.flatten().tolist()
        losses = []
        for (x, y), rate in zip(loader, rates, strict=True):
            x, y = x.to(device), y.to(device)
            optimizer.param_groups[0]["lr"] = rate
            optimizer.zero_grad()
            loss = criterion(model(x), y)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(loss.detach())
        return losses

    return epoch


def eager(run: Run) -> Loop:
    """One step at a time; a batch is a row of indices into data that lies on the device."""
    model, criterion, optimizer, x, y = run.model.module, run.criterion, run.optimizer, run.x, run.y
    group, parameters, step = optimizer.param_groups[0], list(model.parameters()), optimizer.step

    def epoch(order: Tensor, rates: list[float]) -> list[Tensor]:
        losses = []
        for rows, rate in zip(order.to(run.device).unbind(), rates, strict=True):
            group["lr"] = rate
            loss = criterion(model(x[rows]), y[rows])
            for parameter in parameters:
                parameter.grad = None
            loss.backward()  # type: ignore[no-untyped-call]
            step()
            losses.append(loss.detach())
        return losses

    return epoch


def compiled(run: Run, gradient: Gradient) -> Loop:
    """One compiled graph per step, then torch's optimizer."""
    parameters = dict(run.model.module.named_parameters())
    weights = {name: p.detach() for name, p in parameters.items()}
    group, step = run.optimizer.param_groups[0], run.optimizer.step

    def epoch(order: Tensor, rates: list[float]) -> list[Tensor]:
        losses = []
        with torch.no_grad():
            for rows, rate in zip(order.to(run.device).unbind(), rates, strict=True):
                group["lr"] = rate
                gradients, loss = gradient(weights, run.x, run.y, rows)
                for name, parameter in parameters.items():
                    parameter.grad = gradients[name]
                step()
                losses.append(loss)
        return losses

    return epoch


def compiled_whole(run: Run, step: Step, rule: Rule) -> Loop:
    """One compiled graph per step, update included; the optimizer of `run` is not used."""
    weights = {name: p.detach() for name, p in run.model.module.named_parameters()}
    like = next(iter(weights.values()))
    slots = optimizers.slots(rule, list(weights.values()))
    numbers = optimizers.numbers(rule, like)
    done = 0

    def epoch(order: Tensor, rates: list[float]) -> list[Tensor]:
        nonlocal done
        steps = len(rates)
        counts = torch.arange(done + 1, done + steps + 1, dtype=like.dtype, device=like.device)
        rate_of = torch.tensor(rates, dtype=like.dtype, device=like.device)
        done += steps
        with torch.no_grad():
            each = zip(order.to(run.device).unbind(), rate_of.unbind(), counts.unbind(), strict=True)
            return [step(weights, slots, numbers, run.x, run.y, rows, lr, t) for rows, lr, t in each]

    return epoch
