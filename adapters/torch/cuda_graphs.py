"""The epoch without its host: a step is recorded once as a CUDA graph, and replayed for each batch.

What small networks cost on a card is the host, which launches a few dozen kernels a step, one by one. A graph
launches them all at once. Whatever differs from step to step is read on the card: the step itself counts how
often it was done, and by that count takes its rows and its learning rate from tables and puts its loss into
another one. So nothing is copied within an epoch, and nobody waits.

A graph is recorded as PyTorch's notes on CUDA graphs say: after a few real steps on a side stream, which let
libraries and allocator take what they need. Those steps are undone. The graph belongs to the tensors that it
was recorded with, so there is one for each run that loads its weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from adapters.torch import optimizers
from adapters.torch.loops import Loop, Run
from harness.core.training.optimizers import Rule

Step = Callable[[], None]
Recorder = Callable[[Step], Step]
"""Gives what does the same as a step, on the same tensors; may do the step some times for that."""

WARM_UPS = 3


@dataclass(frozen=True)
class _Tables:
    """What the steps of an epoch read and write, on the device: `order` int64 `[steps, batch]`, `rates`,
    `counts` (of all steps so far, for a rule that corrects its bias) and `losses` `[steps]`, and `at` int64
    `[1]`, the step that is next."""

    order: Tensor
    rates: Tensor
    counts: Tensor
    losses: Tensor
    at: Tensor

    def begin(self, order: Tensor, rates: list[float], done: int) -> None:
        """Fill in the next steps, after `done` earlier ones."""
        steps = len(rates)
        self.order[:steps].copy_(order)
        self.rates[:steps].copy_(torch.tensor(rates, dtype=self.rates.dtype))
        self.counts[:steps].copy_(torch.arange(done + 1, done + 1 + steps))
        self.at.zero_()


def recorder(device: torch.device) -> Recorder:
    """Records a CUDA graph."""

    def record(step: Step) -> Step:
        with torch.cuda.device(device):
            side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(WARM_UPS):
                    step()
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                step()
        return graph.replay

    return record


def epoch(run: Run, rule: Rule, record: Recorder) -> Loop:
    """The loop that replays a step; `run.optimizer` must be one that can be recorded."""
    model, criterion, inputs, y = run.model.module, run.criterion, run.inputs, run.y
    parameters = list(run.model.parameters.values())
    tables = _tables(run)
    update = _update(run, rule, tables)
    size = len(tables.rates)

    def step() -> None:
        rows = tables.order.index_select(0, tables.at).squeeze(0)
        loss = criterion(model(*[x[rows] for x in inputs]), y[rows])
        for parameter in parameters:
            parameter.grad = None
        loss.backward()  # type: ignore[no-untyped-call]
        update()
        tables.losses.index_copy_(0, tables.at, loss.detach().unsqueeze(0))
        # stays below the tables' end: more steps than they hold are only taken to be undone
        tables.at.add_(1).remainder_(size)

    replay = _undone(run, record)(step)
    done = run.optimizer.steps if isinstance(run.optimizer, optimizers.SharedRule) else 0

    def loop(order: Tensor, rates: list[float]) -> list[Tensor]:
        nonlocal done
        losses: list[Tensor] = []
        for first in range(0, len(rates), size):
            some = rates[first : first + size]
            tables.begin(order[first : first + size], some, done)
            for _ in some:
                replay()
            done += len(some)
            losses += tables.losses[: len(some)].clone().unbind()
        return losses

    return loop


def _tables(run: Run) -> _Tables:
    like = next(iter(run.model.parameters.values())).detach()
    steps = max(1, len(run.y) // run.batch_size)
    rates, counts, losses = (torch.zeros(steps, dtype=like.dtype, device=run.device) for _ in range(3))
    order = torch.zeros(steps, run.batch_size, dtype=torch.int64, device=run.device)
    counts.fill_(1)  # what divides by the correction of no step at all finds nothing but NaN
    return _Tables(order, rates, counts, losses, torch.zeros(1, dtype=torch.int64, device=run.device))


def _update(run: Run, rule: Rule, tables: _Tables) -> Step:
    """What changes the weights by the gradients that are there, at the rate of the step."""
    optimizer = run.optimizer
    parameters = list(run.model.parameters.values())
    if not isinstance(optimizer, optimizers.SharedRule):
        rate = torch.zeros((), dtype=tables.rates.dtype, device=run.device)
        optimizer.param_groups[0]["lr"] = rate

        def native() -> None:
            rate.copy_(tables.rates.index_select(0, tables.at).squeeze(0))
            optimizer.step()

        return native
    slots, numbers = optimizer.slots, optimizers.numbers(rule, parameters[0])

    @torch.no_grad()
    def shared() -> None:
        lr, t = (table.index_select(0, tables.at).squeeze(0) for table in (tables.rates, tables.counts))
        for parameter, kept in zip(parameters, slots, strict=True):
            assert parameter.grad is not None
            optimizers.update(rule, parameter, parameter.grad, kept, numbers, lr, t)

    return shared


def _undone(run: Run, record: Recorder) -> Recorder:
    """The recorder, which leaves weights, statistics and the optimizer's state as they were. The stream of
    masks, which the steps go on in, is set where a run begins, see `streams`."""

    def recorded(step: Step) -> Step:
        kept = [(tensor, tensor.detach().clone()) for tensor in _tensors(run)]
        known = {id(tensor) for tensor, _ in kept}
        result = record(step)
        with torch.no_grad():
            for tensor, value in kept:
                tensor.copy_(value)
            for tensor in _tensors(run):
                # what the optimizer's first step made; all of it begins at zero
                if id(tensor) not in known:
                    tensor.zero_()
        return result

    return recorded


def _tensors(run: Run) -> Iterator[Tensor]:
    """What a step changes, apart from tables."""
    yield from run.model.parameters.values()
    yield from run.model.state.values()
    if isinstance(run.optimizer, optimizers.SharedRule):
        for kept in run.optimizer.slots:
            yield from kept.values()
    for of_parameter in run.optimizer.state.values():
        yield from (value for value in of_parameter.values() if isinstance(value, Tensor))
