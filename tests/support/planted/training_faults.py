"""Plausible mistakes in the torch adapter's training: losses, loops, update rules."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adapters.torch import loops, model, optimizers, program
from harness.core.training import optimizers as optim
from harness.core.training.optimizers import Adam, AdamW, Momentum, Nesterov, RMSprop, Rule

Patch = pytest.MonkeyPatch


# losses


def _criterion(patch: Patch, function: Callable[[Tensor, Tensor], Tensor]) -> None:
    patch.setattr(model, "criterion", lambda loss: function)


def double_softmax(patch: Patch) -> None:
    _criterion(patch, lambda outputs, y: F.cross_entropy(outputs.softmax(-1), y))


def sum_of_losses(patch: Patch) -> None:
    _criterion(patch, lambda outputs, y: F.cross_entropy(outputs, y, reduction="sum"))


def sum_of_squares(patch: Patch) -> None:
    _criterion(patch, lambda outputs, y: (outputs - y).square().sum(1).mean())


# loops


def _loop(patch: Patch, step: Callable[[loops.Run, int, list[Tensor], list[float]], Tensor]) -> None:
    """Replace the eager loop's step by the faulty `step(run, index, rows of each step, rates)`.

    Rows and rates are those of all steps so far; `index` counts them, from 1.
    """

    def eager(run: loops.Run) -> loops.Loop:
        rows: list[Tensor] = []
        rates: list[float] = []

        def epoch(order: Tensor, epoch_rates: list[float]) -> list[Tensor]:
            losses = []
            for step_rows, rate in zip(order.unbind(), epoch_rates, strict=True):
                rows.append(step_rows)
                rates.append(rate)
                losses.append(step(run, len(rows), rows, rates))
            return losses

        return epoch

    patch.setattr(loops, "eager", eager)


def _loss(run: loops.Run, rows: Tensor) -> Tensor:
    return run.criterion(run.model.module(*[x[rows] for x in run.inputs]), run.y[rows])


def _descend(run: loops.Run, rows: Tensor, rate: float, zero_grad: bool = True) -> Tensor:
    run.optimizer.param_groups[0]["lr"] = rate
    loss = _loss(run, rows)
    if zero_grad:
        run.optimizer.zero_grad()
    loss.backward()
    run.optimizer.step()
    return loss.detach()


def loss_after_update(patch: Patch) -> None:
    def step(run: loops.Run, index: int, rows: list[Tensor], rates: list[float]) -> Tensor:
        _descend(run, rows[-1], rates[-1])
        return _loss(run, rows[-1]).detach()

    _loop(patch, step)


def batch_out_of_order(patch: Patch) -> None:
    _loop(patch, lambda run, index, rows, rates: _descend(run, rows[-2 if index == 7 else -1], rates[-1]))


def rate_one_late(patch: Patch) -> None:
    _loop(patch, lambda run, index, rows, rates: _descend(run, rows[-1], rates[max(index - 2, 0)]))


def gradients_add_up(patch: Patch) -> None:
    _loop(patch, lambda run, index, rows, rates: _descend(run, rows[-1], rates[-1], zero_grad=False))


def gradients_clipped(patch: Patch) -> None:
    real = optimizers.SharedRule.step

    def step(self: optimizers.SharedRule, closure: object = None) -> None:
        nn.utils.clip_grad_value_(self._parameters, 0.1)
        real(self, closure)

    patch.setattr(optimizers.SharedRule, "step", step)


def rate_in_float32(patch: Patch) -> None:
    real = optimizers.scalar
    patch.setattr(optimizers, "scalar", lambda value, like: real(value, like.float()).to(like.dtype))


def late_decay(patch: Patch) -> None:
    def step(run: loops.Run, index: int, rows: list[Tensor], rates: list[float]) -> Tensor:
        return _descend(run, rows[-1], rates[-1] * (0.5 if index > 15 else 1.0))

    _loop(patch, step)


def weights_are_views(patch: Patch) -> None:
    patch.setattr(
        program.TorchTrainer,
        "weights",
        lambda self: {b.name: b.read().numpy() for b in self._program.model.bindings},
    )


# update rules


def _with_rule(patch: Patch, kind: type, change: Callable[[Any], Any]) -> None:
    real = optimizers.make

    def make(rule: Rule, *rest: Any) -> torch.optim.Optimizer:
        return real(change(rule) if isinstance(rule, kind) else rule, *rest)

    patch.setattr(optimizers, "make", make)


def tokens_squared(patch: Patch) -> None:
    """Take Adam's second moment from the rows of a sparse gradient, as Keras' `fit` on TensorFlow does."""

    def forward(self: nn.Embedding, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight, sparse=True)

    class Occurrences(Adam):
        def update(self, w: Any, g: Any, slots: Any, h: Any, lr: Any, t: Any) -> Any:
            if not g.is_sparse:
                return super().update(w, g, slots, h, lr, t)
            rows = g._values() ** 2
            squares = torch.zeros_like(w).index_add_(0, g._indices()[0], rows)
            g = g.to_dense()
            m = h["beta_1"] * slots["m"] + (1 - h["beta_1"]) * g
            v = h["beta_2"] * slots["v"] + (1 - h["beta_2"]) * squares
            root = (v / (1 - h["beta_2"] ** t)) ** 0.5
            return w - lr * m / (1 - h["beta_1"] ** t) / (root + h["epsilon"]), {"m": m, "v": v}

    _with_rule(patch, Adam, lambda rule: Occurrences(**vars(rule)))
    real = optimizers.make

    def make(rule: Rule, *rest: Any) -> Any:
        # the gate of gradients uses plain gradient descent, which needs a dense gradient
        patch.setattr(nn.Embedding, "forward", forward if isinstance(rule, Adam) else plain)
        return real(rule, *rest)

    plain = nn.Embedding.forward
    patch.setattr(optimizers, "make", make)


def decay_forgotten(patch: Patch) -> None:
    _with_rule(patch, optim.SGD, lambda rule: dataclasses.replace(rule, weight_decay=0.0))


def velocity_carries_rate(patch: Patch) -> None:
    class Carries(Momentum):
        def update(self, w: Any, g: Any, slots: Any, h: Any, lr: Any, t: Any) -> Any:
            velocity = h["momentum"] * slots["velocity"] + lr * g
            return w - velocity, {"velocity": velocity}

    _with_rule(patch, Momentum, lambda rule: Carries(**vars(rule)))


def velocity_dampened(patch: Patch) -> None:
    class Dampened(Momentum):
        def update(self, w: Any, g: Any, slots: Any, h: Any, lr: Any, t: Any) -> Any:
            return super().update(w, (1 - h["momentum"]) * g, slots, h, lr, t)

    _with_rule(patch, Momentum, lambda rule: Dampened(**vars(rule)))


def nesterov_is_momentum(patch: Patch) -> None:
    _with_rule(patch, Nesterov, lambda rule: Momentum(**vars(rule)))


def adam_epsilon_hat(patch: Patch) -> None:
    class Hat(Adam):
        def update(self, w: Any, g: Any, slots: Any, h: Any, lr: Any, t: Any) -> Any:
            correction = (1 - h["beta_2"] ** t) ** 0.5
            return super().update(w, g, slots, {**h, "epsilon": h["epsilon"] / correction}, lr, t)

    _with_rule(patch, Adam, lambda rule: Hat(**vars(rule)))


def adam_epsilon_default(patch: Patch) -> None:
    _with_rule(patch, Adam, lambda rule: dataclasses.replace(rule, epsilon=1e-7))


def adam_uncorrected(patch: Patch) -> None:
    class Uncorrected(Adam):
        def update(self, w: Any, g: Any, slots: Any, h: Any, lr: Any, t: Any) -> Any:
            return super().update(w, g, slots, h, lr, torch.full_like(t, torch.inf))

    _with_rule(patch, Adam, lambda rule: Uncorrected(**vars(rule)))


def adam_counts_from_two(patch: Patch) -> None:
    real = optimizers.SharedRule.__init__

    def init(self: optimizers.SharedRule, *arguments: Any) -> None:
        real(self, *arguments)
        self.steps = 1

    patch.setattr(optimizers.SharedRule, "__init__", init)


def decay_coupled(patch: Patch) -> None:
    class Coupled(AdamW):
        def update(self, w: Any, g: Any, slots: Any, h: Any, lr: Any, t: Any) -> Any:
            decay = h["weight_decay"]
            return super().update(w, g + decay * w, slots, {**h, "weight_decay": 0.0 * decay}, lr, t)

    _with_rule(patch, AdamW, lambda rule: Coupled(**vars(rule)))


def rmsprop_epsilon_inside(patch: Patch) -> None:
    class Inside(RMSprop):
        def update(self, w: Any, g: Any, slots: Any, h: Any, lr: Any, t: Any) -> Any:
            v = h["rho"] * slots["v"] + (1 - h["rho"]) * g * g
            return w - lr * g / (v + h["epsilon"]) ** 0.5, {"v": v}

    _with_rule(patch, RMSprop, lambda rule: Inside(**vars(rule)))


def own_adam_default_epsilon(patch: Patch) -> None:
    adam_epsilon_default(patch)


def own_nesterov_forgotten(patch: Patch) -> None:
    nesterov_is_momentum(patch)


def own_adamw_coupled(patch: Patch) -> None:
    def native(rule: Any) -> tuple[Any, dict[str, Any]]:
        kind, arguments = real(rule)
        return (torch.optim.Adam if kind is torch.optim.AdamW else kind), arguments

    real = optimizers._native
    patch.setattr(optimizers, "_native", native)
