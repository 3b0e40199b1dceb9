"""Update rules of native optimizers that are known to deviate from the papers.

An adapter names the deviations of a native optimizer. A name alone would excuse any other fault of the same
optimizer, so each deviation is implemented here as a rule. The certificate trains with that rule and compares
the native optimizer with it, to the same bound as everything else. Each rule has the numbers of the rule that
it deviates from and uses operators only, like those of `harness.core.training.optimizers`.
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
    """v <- m v - lr g; w <- w + v. Sutskever et al. 2013, eq. 1 and 2, and `keras.optimizers.SGD`.

    The velocity carries the learning rate, so earlier rates still have an effect after the rate changes.
    """

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
    """Kingma & Ba 2015, section 2, and `keras.optimizers.Adam`.

    Epsilon is added to the root before the bias correction, which is one factor of the learning rate.
    """

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


DEVIATING_RULES: Mapping[tuple[str, ...], type[Rule]] = {
    ("momentum", "velocity_carries_learning_rate"): DisplacementMomentum,
    ("nesterov", "velocity_carries_learning_rate"): DisplacementNesterov,
    ("adam", "epsilon_inside_bias_correction"): EpsilonHatAdam,
    ("adamw", "epsilon_inside_bias_correction"): EpsilonHatAdamW,
    ("rmsprop", "epsilon_inside_root"): EpsilonInsideRMSprop,
}
"""The rules by the name of the rule that they deviate from, followed by the names of all their deviations."""


def deviating_rule(rule: Rule, deviations: Sequence[str]) -> Rule | None:
    """Return the rule that deviates from `rule` in exactly the named ways, with its numbers; None if missing.

    A deviation that is not an update of one parameter from its gradient has no rule here: TensorFlow's
    handling of the separate rows of an embedding's gradient.
    """
    kind = DEVIATING_RULES.get((rule.name, *sorted(deviations)))
    if kind is None:
        return None
    values = {field.name: getattr(rule, field.name) for field in dataclasses.fields(rule)}
    return kind(**values | {"impl": "shared"})


def _epsilon_hat(w: Tensor, g: Tensor, slots: Tensors, h: Tensors, lr: Tensor, t: Tensor) -> Updated:
    m = h["beta_1"] * slots["m"] + (1 - h["beta_1"]) * g
    v = h["beta_2"] * slots["v"] + (1 - h["beta_2"]) * g * g
    rate = lr * (1 - h["beta_2"] ** t) ** 0.5 / (1 - h["beta_1"] ** t)
    return w - rate * m / (v**0.5 + h["epsilon"]), {"m": m, "v": v}
