"""Update rules as the papers define them, independent of any framework.

Frameworks disagree about details (where epsilon is added, whether the velocity carries the learning rate,
what weight decay means), so each rule is implemented here once, with operators only: the same function
updates NumPy arrays, torch tensors, TensorFlow tensors and JAX tracers. Native optimizers are compared with
it, and `optimizer.impl=shared` runs it.

A rule is a frozen dataclass with class variables `name` and `slots` (the names of its state arrays) and a
method `update(w, g, slots, h, lr, t)`, one step for one parameter: `w` are the weights, `g` the gradient and
`slots` the state (initially zeros), all of one shape; `h` are the rule's numbers (see `numbers`), `lr` the
learning rate and `t` the step counted from 1, as scalars of the weights' dtype. It returns the new weights
and the new state.

Every number of a rule is a field. Programs take the learning rate as an input of each step, and all other
numbers as inputs of the run if the framework allows it, so that a sweep over them compiles nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from harness.core.validation import Range

Tensor = Any
"""An array of any framework; only operators are applied to it."""

Tensors = Mapping[str, Tensor]
Updated = tuple[Tensor, dict[str, Tensor]]

Rate = Annotated[float, Range(min=0.0, exclusive_min=True)]
Decay = Annotated[float, Range(min=0.0)]
Fraction = Annotated[float, Range(min=0.0, max=1.0, exclusive_max=True)]
Epsilon = Annotated[float, Range(min=0.0, exclusive_min=True)]
Impl = Literal["native", "shared"]


@dataclass(frozen=True)
class SGD:
    """w <- w - lr (g + weight_decay w). Robbins & Monro 1951; the decay is plain L2, which is coupled."""

    name: ClassVar[str] = "sgd"
    slots: ClassVar[tuple[str, ...]] = ()
    learning_rate: Rate
    weight_decay: Decay = 0.0
    impl: Impl = "native"

    def update(self, w: Tensor, g: Tensor, slots: Tensors, h: Tensors, lr: Tensor, t: Tensor) -> Updated:
        return w - lr * (g + h["weight_decay"] * w), {}


@dataclass(frozen=True)
class Momentum:
    """v <- m v + g; w <- w - lr v. Polyak 1964; the velocity does not carry the learning rate."""

    name: ClassVar[str] = "momentum"
    slots: ClassVar[tuple[str, ...]] = ("velocity",)
    learning_rate: Rate
    momentum: Fraction = 0.9
    weight_decay: Decay = 0.0
    impl: Impl = "native"

    def update(self, w: Tensor, g: Tensor, slots: Tensors, h: Tensors, lr: Tensor, t: Tensor) -> Updated:
        velocity = h["momentum"] * slots["velocity"] + (g + h["weight_decay"] * w)
        return w - lr * velocity, {"velocity": velocity}


@dataclass(frozen=True)
class Nesterov:
    """v <- m v + g; w <- w - lr (g + m v). Nesterov 1983, in the form of Sutskever et al. 2013, section 3."""

    name: ClassVar[str] = "nesterov"
    slots: ClassVar[tuple[str, ...]] = ("velocity",)
    learning_rate: Rate
    momentum: Annotated[float, Range(min=0.0, max=1.0, exclusive_min=True, exclusive_max=True)] = 0.9
    weight_decay: Decay = 0.0
    impl: Impl = "native"

    def update(self, w: Tensor, g: Tensor, slots: Tensors, h: Tensors, lr: Tensor, t: Tensor) -> Updated:
        g = g + h["weight_decay"] * w
        velocity = h["momentum"] * slots["velocity"] + g
        return w - lr * (g + h["momentum"] * velocity), {"velocity": velocity}


@dataclass(frozen=True)
class Adam:
    """Kingma & Ba 2015, algorithm 1: epsilon is added after the bias correction, outside the root."""

    name: ClassVar[str] = "adam"
    slots: ClassVar[tuple[str, ...]] = ("m", "v")
    learning_rate: Rate
    beta_1: Fraction = 0.9
    beta_2: Fraction = 0.999
    epsilon: Epsilon = 1e-8
    impl: Impl = "native"

    def update(self, w: Tensor, g: Tensor, slots: Tensors, h: Tensors, lr: Tensor, t: Tensor) -> Updated:
        return _adam(w, g, slots, h, lr, t)


@dataclass(frozen=True)
class AdamW:
    """Loshchilov & Hutter 2019, algorithm 2: Adam, and w <- w - lr weight_decay w, decoupled from the
    gradient."""

    name: ClassVar[str] = "adamw"
    slots: ClassVar[tuple[str, ...]] = ("m", "v")
    learning_rate: Rate
    beta_1: Fraction = 0.9
    beta_2: Fraction = 0.999
    epsilon: Epsilon = 1e-8
    weight_decay: Decay = 0.01
    impl: Impl = "native"

    def update(self, w: Tensor, g: Tensor, slots: Tensors, h: Tensors, lr: Tensor, t: Tensor) -> Updated:
        return _adam(w - lr * (h["weight_decay"] * w), g, slots, h, lr, t)


@dataclass(frozen=True)
class RMSprop:
    """Tieleman & Hinton 2012, lecture 6e: g over the root of its running mean square; epsilon outside."""

    name: ClassVar[str] = "rmsprop"
    slots: ClassVar[tuple[str, ...]] = ("v",)
    learning_rate: Rate
    rho: Fraction = 0.9
    epsilon: Epsilon = 1e-7
    impl: Impl = "native"

    def update(self, w: Tensor, g: Tensor, slots: Tensors, h: Tensors, lr: Tensor, t: Tensor) -> Updated:
        v = h["rho"] * slots["v"] + (1 - h["rho"]) * g * g
        return w - lr * g / (v**0.5 + h["epsilon"]), {"v": v}


Rule = SGD | Momentum | Nesterov | Adam | AdamW | RMSprop
"""All update rules: the `optimizer` section of a configuration."""


def _adam(w: Tensor, g: Tensor, slots: Tensors, h: Tensors, lr: Tensor, t: Tensor) -> Updated:
    m = h["beta_1"] * slots["m"] + (1 - h["beta_1"]) * g
    v = h["beta_2"] * slots["v"] + (1 - h["beta_2"]) * g * g
    m_hat = m / (1 - h["beta_1"] ** t)
    v_hat = v / (1 - h["beta_2"] ** t)
    return w - lr * m_hat / (v_hat**0.5 + h["epsilon"]), {"m": m, "v": v}


def numbers(rule: Rule) -> dict[str, float]:
    """Return the rule's numbers besides the learning rate, by field name: the inputs `h` of `update`."""
    fields = (f.name for f in dataclasses.fields(rule) if f.name not in ("learning_rate", "impl"))
    return {name: getattr(rule, name) for name in fields}


def program_rule(rule: Rule) -> Rule:
    """Return the part of a rule that a compiled program depends on; rules with equal parts share a program.

    The learning rate and the weight decay are always inputs; with `impl=shared`, every number is.
    """
    inputs: dict[str, Any] = {"learning_rate": 1.0}
    if hasattr(rule, "weight_decay"):
        inputs["weight_decay"] = 0.0
    if rule.impl == "shared":
        defaults = {f.name: f.default for f in dataclasses.fields(rule) if f.name in numbers(rule)}
        inputs |= {name: value for name, value in defaults.items() if isinstance(value, float)}
    return dataclasses.replace(rule, **inputs)
