"""The rules that frameworks' own optimizers follow where these are known to differ from the papers'.

An adapter names the deviations of a native optimizer. A name alone would cover whatever else is wrong in the
same optimizer, so what it stands for is written here as a rule of its own. The certificate trains with it as
with a shared rule, and holds the native optimizer against it to the bound of everything else. Each rule takes
the numbers of the one that it deviates from, and is written with operators only, as those of
`harness.core.training.optimizers`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.core.training.optimizers import (
    Adam,
    AdamW,
    Momentum,
    Nesterov,
    RMSprop,
    Rule,
    Tensor,
    Tensors,
    Updated,
)


@dataclass(frozen=True)
class DisplacementMomentum(Momentum):
    """v <- m v - lr g; w <- w + v. Sutskever et al. 2013, eq. 1 and 2, and `keras.optimizers.SGD`: the
    velocity carries the learning rate, so that after a change of it the old rates still have their say."""

    def update(self, w: Tensor, g: Tensor, slots: Tensors, h: Tensors, lr: Tensor, t: Tensor) -> Updated:
        velocity = h["momentum"] * slots["velocity"] - lr * (g + h["weight_decay"] * w)
        return w + velocity, {"velocity": velocity}


@dataclass(frozen=True)
class DisplacementNesterov(Nesterov):
    """v <- m v - lr g; w <- w + m v - lr g. `keras.optimizers.SGD` with `nesterov`; see above."""

    def update(self, w: Tensor, g: Tensor, slots: Tensors, h: Tensors, lr: Tensor, t: Tensor) -> Updated:
        g = g + h["weight_decay"] * w
        velocity = h["momentum"] * slots["velocity"] - lr * g
        return w + h["momentum"] * velocity - lr * g, {"velocity": velocity}


@dataclass(frozen=True)
class EpsilonHatAdam(Adam):
    """Kingma & Ba 2015, section 2, and `keras.optimizers.Adam`: epsilon is added to the root before
    the bias correction, which is one factor of the learning rate."""

    def update(self, w: Tensor, g: Tensor, slots: Tensors, h: Tensors, lr: Tensor, t: Tensor) -> Updated:
        return _epsilon_hat(w, g, slots, h, lr, t)


@dataclass(frozen=True)
class EpsilonHatAdamW(AdamW):
    """`keras.optimizers.AdamW`: the weight decay of the rule, and epsilon as in `EpsilonHatAdam`."""

    def update(self, w: Tensor, g: Tensor, slots: Tensors, h: Tensors, lr: Tensor, t: Tensor) -> Updated:
        return _epsilon_hat(w - lr * (h["weight_decay"] * w), g, slots, h, lr, t)


@dataclass(frozen=True)
class EpsilonInsideRMSprop(RMSprop):
    """`keras.optimizers.RMSprop`: epsilon is added to the mean square and not to its root."""

    def update(self, w: Tensor, g: Tensor, slots: Tensors, h: Tensors, lr: Tensor, t: Tensor) -> Updated:
        v = h["rho"] * slots["v"] + (1 - h["rho"]) * g * g
        return w - lr * g / (v + h["epsilon"]) ** 0.5, {"v": v}


WRITTEN: Mapping[tuple[str, ...], type[Rule]] = {
    ("momentum", "velocity_carries_learning_rate"): DisplacementMomentum,
    ("nesterov", "velocity_carries_learning_rate"): DisplacementNesterov,
    ("adam", "epsilon_inside_bias_correction"): EpsilonHatAdam,
    ("adamw", "epsilon_inside_bias_correction"): EpsilonHatAdamW,
    ("rmsprop", "epsilon_inside_root"): EpsilonInsideRMSprop,
}
"""The rules by the name of the one that they deviate from, and by everything in which they do."""


def written(rule: Rule, deviations: Sequence[str]) -> Rule | None:
    """The rule that deviates from `rule` in just what is named, with its numbers, or None if none is written.

    What can't be said as an update of one parameter from its gradient has no rule here: what TensorFlow does
    with the separate rows of an embedding's gradient.
    """
    kind = WRITTEN.get((rule.name, *sorted(deviations)))
    if kind is None:
        return None
    given = {field.name: getattr(rule, field.name) for field in dataclasses.fields(rule)}
    return kind(**given | {"impl": "shared"})


def _epsilon_hat(w: Tensor, g: Tensor, slots: Tensors, h: Tensors, lr: Tensor, t: Tensor) -> Updated:
    m = h["beta_1"] * slots["m"] + (1 - h["beta_1"]) * g
    v = h["beta_2"] * slots["v"] + (1 - h["beta_2"]) * g * g
    rate = lr * (1 - h["beta_2"] ** t) ** 0.5 / (1 - h["beta_1"] ** t)
    return w - rate * m / (v**0.5 + h["epsilon"]), {"m": m, "v": v}
