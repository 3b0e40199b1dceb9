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
from adapters.torch.compiled import Gradient, Step
from adapters.torch.model import Criterion, Model
from harness.core.training.optimizers import Rule

Loop = Callable[[Tensor, list[float]], list[Tensor]]
"""(order of rows int64 `[steps, batch]` on the host, learning rate of each step) -> loss of each step"""


@dataclass(frozen=True)
class Run:
    """What a loop works on: `inputs` (x, and of padded sequences their lengths) and `y` are the training
    split, on the device but for `idiomatic`."""

    model: Model
    criterion: Criterion
    optimizer: torch.optim.Optimizer
    inputs: tuple[Tensor, ...]
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
    rows = TensorDataset(*run.inputs, run.y)
    model, criterion, optimizer, device = run.model.module, run.criterion, run.optimizer, run.device
    group = optimizer.param_groups[0]
    elsewhere = device.type != "cpu"
    pinned = device.type == "cuda"  # memory that a card can read while the host goes on
    loader = DataLoader(
        rows, run.batch_size, sampler=sampler, drop_last=True, generator=own, pin_memory=pinned
    )

    def epoch(order: Tensor, rates: list[float]) -> list[Tensor]:
        sampler.rows = order.flatten().tolist()
        losses = []
        for batch, rate in zip(loader, rates, strict=True):
            if elsewhere:
                batch = [part.to(device, non_blocking=pinned) for part in batch]
            *inputs, y = batch
            group["lr"] = rate
            optimizer.zero_grad()
            loss = criterion(model(*inputs), y)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(loss.detach())
        return losses

    return epoch


def eager(run: Run) -> Loop:
    """One step at a time; a batch is a row of indices into data that lies on the device."""
    model, criterion, optimizer, inputs, y = run.model.module, run.criterion, run.optimizer, run.inputs, run.y
    group, parameters, step = optimizer.param_groups[0], list(run.model.parameters.values()), optimizer.step

    def epoch(order: Tensor, rates: list[float]) -> list[Tensor]:
        losses = []
        for rows, rate in zip(order.to(run.device).unbind(), rates, strict=True):
            group["lr"] = rate
            loss = criterion(model(*[x[rows] for x in inputs]), y[rows])
            for parameter in parameters:
                parameter.grad = None
            loss.backward()  # type: ignore[no-untyped-call]
            step()
            losses.append(loss.detach())
        return losses

    return epoch


def compiled(run: Run, gradient: Gradient) -> Loop:
    """One compiled graph per step, then torch's optimizer."""
    parameters, state = run.model.parameters, run.model.state
    weights = {name: p.detach() for name, p in parameters.items()}
    group, step = run.optimizer.param_groups[0], run.optimizer.step

    def epoch(order: Tensor, rates: list[float]) -> list[Tensor]:
        losses = []
        with torch.no_grad():
            for rows, rate in zip(order.to(run.device).unbind(), rates, strict=True):
                group["lr"] = rate
                gradients, loss = gradient(weights, state, run.inputs, run.y, rows)
                for name, parameter in parameters.items():
                    parameter.grad = gradients[name]
                step()
                losses.append(loss)
        return losses

    return epoch


def compiled_whole(run: Run, step: Step, rule: Rule) -> Loop:
    """One compiled graph per step, update included; the optimizer of `run` only keeps the state."""
    weights = {name: p.detach() for name, p in run.model.parameters.items()}
    state, inputs, y = run.model.state, run.inputs, run.y
    like = next(iter(weights.values()))
    optimizer = run.optimizer
    assert isinstance(optimizer, optimizers.SharedRule)
    slots, numbers = optimizer.slots, optimizers.numbers(rule, like)

    def epoch(order: Tensor, rates: list[float]) -> list[Tensor]:
        steps, done = len(rates), optimizer.steps
        counts = torch.arange(done + 1, done + steps + 1, dtype=like.dtype, device=like.device)
        rate_of = torch.tensor(rates, dtype=like.dtype, device=like.device)
        optimizer.steps += steps
        with torch.no_grad():
            each = zip(order.to(run.device).unbind(), rate_of.unbind(), counts.unbind(), strict=True)
            return [step(weights, state, slots, numbers, inputs, y, rows, lr, t) for rows, lr, t in each]

    return epoch
