"""Training loops, one for each execution: `idiomatic`, `eager` and `compiled`.

A loop is created when a run loads its weights, and everything that can be is moved out of the step, so that
the loop contains only what defines the execution. It returns the losses as tensors on the device, without
conversion.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler, TensorDataset

from adapters.torch import optimizers
from adapters.torch.compiled import GradientFunction, StepFunction
from adapters.torch.model import Criterion, Model
from harness.core.training.optimizers import Rule

Loop = Callable[[Tensor, list[float]], list[Tensor]]
"""(order of rows int64 `[steps, batch]` on the host, learning rate of each step) -> loss of each step"""


@dataclass(frozen=True)
class Run:
    """The objects of a run that a loop uses.

    `inputs` (x, and the lengths of padded sequences) and `y` are the training split: on the host for the
    execution `idiomatic`, else on the device.
    """

    model: Model
    criterion: Criterion
    optimizer: torch.optim.Optimizer
    inputs: tuple[Tensor, ...]
    y: Tensor
    batch_size: int
    device: torch.device


class _FixedOrderSampler(Sampler[int]):
    """Yields the rows of an epoch in the order that the harness sets."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    def __iter__(self) -> Iterator[int]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)


def idiomatic(run: Run) -> Loop:
    """Return the loop of PyTorch's own tutorial: a DataLoader over a TensorDataset on the host."""
    sampler = _FixedOrderSampler()
    # a separate generator: the loader draws from it, and dropout must not depend on that
    generator = torch.Generator()
    dataset = TensorDataset(*run.inputs, run.y)
    model, criterion, optimizer, device = run.model.module, run.criterion, run.optimizer, run.device
    group = optimizer.param_groups[0]
    on_host = device.type == "cpu"
    pinned = device.type == "cuda"  # a GPU can read pinned memory while the host continues
    loader = DataLoader(
        dataset, run.batch_size, sampler=sampler, drop_last=True, generator=generator, pin_memory=pinned
    )

    def epoch(order: Tensor, rates: list[float]) -> list[Tensor]:
        sampler.rows = order.flatten().tolist()
        losses = []
        for batch, rate in zip(loader, rates, strict=True):
            if not on_host:
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
    """Return a loop of single steps; a batch is a row of indices into data on the device."""
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


def compiled_gradient(run: Run, gradient: GradientFunction) -> Loop:
    """Return a loop that runs one compiled graph per step, then torch's optimizer."""
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


def compiled_step(run: Run, step: StepFunction, rule: Rule) -> Loop:
    """Return a loop that runs one compiled graph per step, including the update.

    The optimizer of `run` only stores the state.
    """
    weights = {name: p.detach() for name, p in run.model.parameters.items()}
    state, inputs, y = run.model.state, run.inputs, run.y
    like = next(iter(weights.values()))
    optimizer = run.optimizer
    assert isinstance(optimizer, optimizers.SharedRule)
    slots, numbers = optimizer.slots, optimizers.numbers(rule, like)

    def epoch(order: Tensor, rates: list[float]) -> list[Tensor]:
        steps, done = len(rates), optimizer.steps
        counts = torch.arange(done + 1, done + steps + 1, dtype=like.dtype, device=like.device)
        rate_tensor = torch.tensor(rates, dtype=like.dtype, device=like.device)
        optimizer.steps += steps
        with torch.no_grad():
            batches = zip(order.to(run.device).unbind(), rate_tensor.unbind(), counts.unbind(), strict=True)
            return [step(weights, state, slots, numbers, inputs, y, rows, lr, t) for rows, lr, t in batches]

    return epoch
