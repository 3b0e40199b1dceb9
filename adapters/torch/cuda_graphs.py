"""The execution `epoch` on a GPU: a step is captured once as a CUDA graph and replayed for each batch.

With small networks the host limits the speed: it launches a few dozen kernels a step, one by one. A graph
launches them all at once. Everything that varies between steps is read on the GPU: the step increments a
counter, reads its rows and its learning rate from tables at that index, and writes its loss to another table.
So no step copies data between host and device, or synchronises them.

The capture follows PyTorch's notes on CUDA graphs: some real steps run first on a side stream, so that
libraries and allocator reserve their memory. Those warm-up steps are then undone. A graph is tied to the
tensors that it was captured with, so each load of weights captures a new one.
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
Capture = Callable[[Step], Step]
"""From a step to a function with the same effect on the same tensors; may run the step for warm-up."""

WARMUP_STEPS = 3


@dataclass(frozen=True)
class _StepTables:
    """The data that the steps of an epoch read and write, on the device.

    `order` is int64 `[steps, batch]`; `rates`, `counts` (of all steps so far, for a rule that corrects its
    bias) and `losses` are `[steps]`; `index`, int64 `[1]`, is the next step.
    """

    order: Tensor
    rates: Tensor
    counts: Tensor
    losses: Tensor
    index: Tensor

    def fill(self, order: Tensor, rates: list[float], steps_done: int) -> None:
        """Write the next steps, which follow `steps_done` earlier ones."""
        steps = len(rates)
        self.order[:steps].copy_(order)
        self.rates[:steps].copy_(torch.tensor(rates, dtype=self.rates.dtype))
        self.counts[:steps].copy_(torch.arange(steps_done + 1, steps_done + 1 + steps))
        self.index.zero_()


def graph_capture(device: torch.device) -> Capture:
    """Return the function that captures a step as a CUDA graph, after warm-up steps."""

    def capture(step: Step) -> Step:
        with torch.cuda.device(device):
            side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(WARMUP_STEPS):
                    step()
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                step()
        return graph.replay

    return capture


def epoch(run: Run, rule: Rule, capture: Capture) -> Loop:
    """Return the loop that replays a captured step; `run.optimizer` must be capturable."""
    model, criterion, inputs, y = run.model.module, run.criterion, run.inputs, run.y
    parameters = list(run.model.parameters.values())
    tables = _step_tables(run)
    update = _update_step(run, rule, tables)
    size = len(tables.rates)

    def step() -> None:
        rows = tables.order.index_select(0, tables.index).squeeze(0)
        loss = criterion(model(*[x[rows] for x in inputs]), y[rows])
        for parameter in parameters:
            parameter.grad = None
        loss.backward()  # type: ignore[no-untyped-call]
        update()
        tables.losses.index_copy_(0, tables.index, loss.detach().unsqueeze(0))
        # wraps around, because there may be more warm-up steps than rows in the tables
        tables.index.add_(1).remainder_(size)

    replay = _with_rollback(run, capture)(step)
    steps_done = run.optimizer.steps if isinstance(run.optimizer, optimizers.SharedRule) else 0

    def loop(order: Tensor, rates: list[float]) -> list[Tensor]:
        nonlocal steps_done
        losses: list[Tensor] = []
        for first in range(0, len(rates), size):
            part = rates[first : first + size]
            tables.fill(order[first : first + size], part, steps_done)
            for _ in part:
                replay()
            steps_done += len(part)
            losses += tables.losses[: len(part)].clone().unbind()
        return losses

    return loop


def _step_tables(run: Run) -> _StepTables:
    like = next(iter(run.model.parameters.values())).detach()
    steps = max(1, len(run.y) // run.batch_size)
    rates, counts, losses = (torch.zeros(steps, dtype=like.dtype, device=run.device) for _ in range(3))
    order = torch.zeros(steps, run.batch_size, dtype=torch.int64, device=run.device)
    counts.fill_(1)  # with a count of 0, bias correction divides by zero
    return _StepTables(order, rates, counts, losses, torch.zeros(1, dtype=torch.int64, device=run.device))


def _update_step(run: Run, rule: Rule, tables: _StepTables) -> Step:
    """Return the function that updates the weights from their gradients, at the step's learning rate."""
    optimizer = run.optimizer
    parameters = list(run.model.parameters.values())
    if not isinstance(optimizer, optimizers.SharedRule):
        rate = torch.zeros((), dtype=tables.rates.dtype, device=run.device)
        optimizer.param_groups[0]["lr"] = rate

        def native() -> None:
            rate.copy_(tables.rates.index_select(0, tables.index).squeeze(0))
            optimizer.step()

        return native
    slots, numbers = optimizer.slots, optimizers.numbers(rule, parameters[0])

    @torch.no_grad()
    def shared() -> None:
        lr, t = (table.index_select(0, tables.index).squeeze(0) for table in (tables.rates, tables.counts))
        for parameter, parameter_slots in zip(parameters, slots, strict=True):
            assert parameter.grad is not None
            optimizers.update(rule, parameter, parameter.grad, parameter_slots, numbers, lr, t)

    return shared


def _with_rollback(run: Run, capture: Capture) -> Capture:
    """Wrap a capture so that weights, statistics and optimizer state are the same afterwards.

    The steps also advance the generator of dropout masks; the start of a run sets it, see `dropout_rng`.
    """

    def capture_and_restore(step: Step) -> Step:
        saved = [(tensor, tensor.detach().clone()) for tensor in _step_state(run)]
        saved_ids = {id(tensor) for tensor, _ in saved}
        replay = capture(step)
        with torch.no_grad():
            for tensor, value in saved:
                tensor.copy_(value)
            for tensor in _step_state(run):
                # created by the optimizer's first step; all such state starts at zero
                if id(tensor) not in saved_ids:
                    tensor.zero_()
        return replay

    return capture_and_restore


def _step_state(run: Run) -> Iterator[Tensor]:
    """Yield the tensors that a step changes, except the tables."""
    yield from run.model.parameters.values()
    yield from run.model.state.values()
    if isinstance(run.optimizer, optimizers.SharedRule):
        for slots in run.optimizer.slots:
            yield from slots.values()
    for state in run.optimizer.state.values():
        yield from (value for value in state.values() if isinstance(value, Tensor))
