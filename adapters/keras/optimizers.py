"""The optimizers: Keras' own with the run's numbers as variables, or a shared rule in a Keras optimizer.

Keras' optimizers store their numbers as Python floats, which become constants of the compiled program. Here
the learning rates and the weight decay are variables, so that a sweep over them needs no compilation. The
update itself stays Keras' own, with its deviations from the rule: `DEVIATIONS` names them, and certificates
measure and prove them. One thing is changed because it is more than a detail: in the rules of
`harness.core.training.optimizers` the weight decay of SGD, momentum and Nesterov is coupled (added to the
gradient), while Keras always decouples it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, assert_never

import keras
import numpy as np
import numpy.typing as npt
from keras import ops

from harness.core.adapter import Storage
from harness.core.training.optimizers import SGD, Adam, AdamW, Momentum, Nesterov, RMSprop, Rule, numbers
from harness.core.training.training_state import DISPLACEMENT

LookUp = Callable[[Any, Any, int], Any]
"""`table[step % steps]` by an operation of the backend; Keras' `ops.take` costs 55 µs a step on torch."""

DEVIATIONS: dict[str, tuple[str, ...]] = {
    "momentum": ("velocity_carries_learning_rate",),
    "nesterov": ("velocity_carries_learning_rate",),
    "adam": ("epsilon_inside_bias_correction",),
    "adamw": ("epsilon_inside_bias_correction",),
    "rmsprop": ("epsilon_inside_root",),
}
"""The deviations of Keras' own updates from the rules, by the names of
`harness.core.certificates.native_rules`. The first two have an effect only with a schedule."""

SPARSE_DEVIATION = "squares_each_occurrence_of_a_token"
"""A further deviation of `fit` on TensorFlow with an embedding: its gradient has one row per token of the
batch, so the square of a token's gradient, which Adam and RMSprop average, becomes the sum of the squares of
its rows (0.06 off in the weights after 12 steps at a rate of 0.02)."""


def deviations(rule: Rule, sparse: bool) -> list[str]:
    """The deviations from the rule; `sparse` means gradients as rows, see `SPARSE_DEVIATION`."""
    if rule.impl == "shared":
        return []
    squares = isinstance(rule, Adam | AdamW | RMSprop)
    return [*DEVIATIONS.get(rule.name, ()), *([SPARSE_DEVIATION] if sparse and squares else [])]


class Rates(keras.optimizers.schedules.LearningRateSchedule):  # type: ignore[misc]
    """The learning rate of each step, from the table of the epoch.

    `table` is a variable of the optimizer, `[steps]` in the plan's precision. The optimizer's step count
    continues from epoch to epoch, so the index is the count modulo the length of the table. A table instead
    of a callback per batch, because that would make an asynchronous `fit` wait at every step, and instead of
    an argument of each step, because an argument costs JAX 8 µs.
    """

    def __init__(self, steps: int, look_up: LookUp) -> None:
        self.steps = steps
        self.look_up = look_up
        self.table: Any = None

    def __call__(self, step: Any) -> Any:
        """The learning rate at `step`, a variable that counts from 0."""
        return self.look_up(self.table.value, step.value, self.steps)


def indexed(table: Any, step: Any, steps: int) -> Any:
    """The rate of a step by plain indexing."""
    return table[step % steps]


@dataclass(eq=False)
class Optimizer:
    """A Keras optimizer built on a model's variables, and the variables for the run's numbers.

    `slots` is its state by the names of `harness.core.training.training_state`, one variable per trained
    variable, or none if Keras has no state (a momentum of 0). `steps` is the step count at the start of the
    run.
    """

    keras: Any
    rates: Rates
    inputs: dict[str, Any]
    slots: dict[str, list[Any]] = field(default_factory=dict)
    steps: int = 0
    _rates_set: npt.NDArray[np.float64] | None = None

    def reset(self, rule: Rule, steps: int = 0) -> None:
        """Set the state to zero, the step count to `steps`, and the numbers to those of `rule`."""
        self.steps = steps
        self._rates_set = None
        values: dict[int, float] = {id(self.keras.iterations): steps}
        rule_numbers = numbers(rule)
        values |= {id(variable): rule_numbers[name] for name, variable in self.inputs.items()}
        for variable in self.keras.variables:
            variable.assign(np.full(variable.shape, values.get(id(variable), 0), dtype=variable.dtype))

    def set_rates(self, rates: npt.NDArray[np.float64]) -> None:
        """Set the rates of an epoch, `[steps]`. Unchanged rates are not assigned, which would cost JAX 0.2
        ms."""
        if (table := self.new_table(rates)) is not None:
            self.rates.table.assign(table)

    def new_table(self, rates: npt.NDArray[np.float64]) -> npt.NDArray[Any] | None:
        """The table of an epoch, or None if it is unchanged since the previous epoch and the last `reset`."""
        if self._rates_set is not None and np.array_equal(self._rates_set, rates):
            return None
        self._rates_set = rates.copy()
        return self.table(rates)

    def table(self, rates: npt.NDArray[np.float64]) -> npt.NDArray[Any]:
        """The table of an epoch: the rates, rotated so that the first one is at the index of the step
        count."""
        shift = self.steps % len(rates)
        return (np.roll(rates, shift) if shift else rates).astype(self.rates.table.dtype)

    def name(self) -> str:
        """The name of the optimizer, as recorded in the settings."""
        if isinstance(self.keras, SharedOptimizer):
            return f"harness.core.training.optimizers.{type(self.keras.rule).__name__}"
        native = next(each for each in _NATIVE if isinstance(self.keras, each))
        return f"keras.optimizers.{native.__name__}"


def build(rule: Rule, variables: Sequence[Any], steps: int, precision: Storage, look_up: LookUp) -> Optimizer:
    """Build the optimizer of a program; `rule` comes from `harness.core.training.optimizers.program_rule`."""
    rates = Rates(steps, look_up)
    optimizer = SharedOptimizer(rule, rates) if rule.impl == "shared" else _native(rule, rates, precision)
    optimizer.build(variables)
    rates.table = optimizer.add_variable((steps,), dtype=precision, name="learning_rates")
    if isinstance(optimizer, SharedOptimizer):
        return Optimizer(optimizer, rates, optimizer.inputs, optimizer.slots)
    slots = _native_slots(rule, optimizer)
    if not hasattr(rule, "weight_decay"):
        return Optimizer(optimizer, rates, {}, slots)
    decay = optimizer.add_variable((), dtype=precision, name="weight_decay")
    if isinstance(rule, AdamW):
        optimizer.weight_decay = decay
    else:
        optimizer.coupled_decay = decay
    return Optimizer(optimizer, rates, {"weight_decay": decay}, slots)


def _native(rule: Rule, rates: Rates, precision: Storage) -> Any:
    """Keras' own optimizer for a rule.

    In float64 the numbers are NumPy's, because `ops.cast(0.9, "float64")` on TensorFlow rounds 0.9 to float32
    first. In float32 they stay Python's, which adopt the dtype of the weights.
    """
    n = {name: np.float64(v) if precision == "float64" else v for name, v in numbers(rule).items()}
    match rule:
        case SGD():
            return _coupled()(rates)
        case Momentum():
            return _coupled()(rates, momentum=n["momentum"])
        case Nesterov():
            return _coupled()(rates, momentum=n["momentum"], nesterov=True)
        case Adam():
            return keras.optimizers.Adam(rates, n["beta_1"], n["beta_2"], n["epsilon"])
        case AdamW():
            betas = {"beta_1": n["beta_1"], "beta_2": n["beta_2"]}
            return keras.optimizers.AdamW(rates, weight_decay=0.0, epsilon=n["epsilon"], **betas)
        case RMSprop():
            return keras.optimizers.RMSprop(rates, rho=n["rho"], epsilon=n["epsilon"])
        case _:
            assert_never(rule)


def _native_slots(rule: Rule, optimizer: Any) -> dict[str, list[Any]]:
    """The slots of a rule in Keras' own optimizer, in the order of the trained variables."""
    match rule:
        case SGD():
            return {}
        case Momentum() | Nesterov():
            return {DISPLACEMENT: optimizer.momentums}
        case Adam() | AdamW():
            return {"m": optimizer._momentums, "v": optimizer._velocities}
        case RMSprop():
            return {"v": optimizer._velocities}
        case _:
            assert_never(rule)


def _coupled() -> Any:
    """Keras' SGD with coupled weight decay.

    The base class is that of an instance: on torch, Keras returns an instance of another class, which updates
    all variables at once and which a plain subclass of keras.optimizers.SGD would lose.
    """
    base: Any = type(keras.optimizers.SGD())

    class CoupledSGD(base):  # type: ignore[misc]
        coupled_decay: Any

        def apply(self, grads: Sequence[Any], trainable_variables: Sequence[Any] | None = None) -> None:
            """Add weight_decay * w to each gradient, then apply Keras' own update."""
            variables = self._trainable_variables if trainable_variables is None else trainable_variables
            decay = ops.convert_to_tensor(self.coupled_decay)
            decayed = [g + decay * ops.convert_to_tensor(w) for g, w in zip(grads, variables, strict=True)]
            super().apply(decayed, trainable_variables)

    return CoupledSGD


class SharedOptimizer(keras.optimizers.Optimizer):  # type: ignore[misc]
    """Applies `rule.update` to the tensors of any backend; every number of the rule is a variable."""

    def __init__(self, rule: Rule, rates: Rates) -> None:
        super().__init__(rates)
        self.rule = rule
        self.inputs: dict[str, Any] = {}
        self.slots: dict[str, list[Any]] = {}

    def build(self, variables: Sequence[Any]) -> None:
        """Create the state of each variable, and the variables for the rule's numbers."""
        super().build(variables)
        dtype = variables[0].dtype
        self.slots = {name: self.add_optimizer_variables(variables, name) for name in self.rule.slots}
        self.inputs = {name: self.add_variable((), dtype=dtype, name=name) for name in numbers(self.rule)}

    def _backend_update_step(
        self, grads: Sequence[Any], trainable_variables: Sequence[Any], rate: Any
    ) -> None:
        h = {name: ops.convert_to_tensor(variable) for name, variable in self.inputs.items()}
        dtype = trainable_variables[0].dtype
        lr = ops.convert_to_tensor(rate, dtype=dtype)
        t = ops.cast(self.iterations + 1, dtype)
        for gradient, variable in zip(grads, trainable_variables, strict=True):
            index = self._get_variable_index(variable)
            slots = {name: each[index] for name, each in self.slots.items()}
            state = {name: ops.convert_to_tensor(slot) for name, slot in slots.items()}
            w, state = self.rule.update(ops.convert_to_tensor(variable), gradient, state, h, lr, t)
            variable.assign(w)
            for name, value in state.items():
                slots[name].assign(value)


_NATIVE = (keras.optimizers.AdamW, keras.optimizers.Adam, keras.optimizers.RMSprop, keras.optimizers.SGD)
