"""The optimizers: Keras' own with the harness's numbers fed in, or one shared rule inside a Keras optimizer.

Keras' optimizers hold their numbers as Python floats, which end up as constants of the compiled program. Here
the learning rates and the weight decay are variables, so that a sweep over them compiles nothing. The update
itself stays Keras' own, deviations from the rule included: they are named in `DEVIATIONS`, measured and
proven by others. One thing is changed, because it is not small print: in the rules of
`harness.core.training.optimizers` the weight decay of SGD and its kin is coupled (added to the gradient),
while Keras always decouples it.
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
"""`table[step % steps]` in the backend's own terms; Keras' `ops.take` costs 55 µs a step on torch."""

DEVIATIONS: dict[str, tuple[str, ...]] = {
    "momentum": ("velocity_carries_learning_rate",),
    "nesterov": ("velocity_carries_learning_rate",),
    "adam": ("epsilon_inside_bias_correction",),
    "adamw": ("epsilon_inside_bias_correction",),
    "rmsprop": ("epsilon_inside_root",),
}
"""Where Keras' own update differs from the rule of that name, as `harness.core.certificates.native_rules`
writes it down; in the first two it shows only under a schedule."""

SPARSE_DEVIATION = "squares_each_occurrence_of_a_token"
"""What else differs where `fit` on TensorFlow trains an embedding: its gradient comes as one row for each
token of the batch, and the square of a token's gradient, of which Adam and RMSprop keep a mean, becomes the
sum of the squares of its rows (0.06 off in the weights after 12 steps at a rate of 0.02)."""


def deviations(rule: Rule, sparse: bool) -> list[str]:
    """Where what runs differs from the rule; `sparse`: gradients come as rows, see `SPARSE_DEVIATION`."""
    if rule.impl == "shared":
        return []
    squares = isinstance(rule, Adam | AdamW | RMSprop)
    return [*DEVIATIONS.get(rule.name, ()), *([SPARSE_DEVIATION] if sparse and squares else [])]


class Rates(keras.optimizers.schedules.LearningRateSchedule):  # type: ignore[misc]
    """The learning rate of each step, from the table of the epoch.

    `table` is a variable of the optimizer, `[steps]` in the plan's precision. The optimizer counts its steps
    on from epoch to epoch, so the place in it is the count modulo its length. A table rather than a callback
    a batch, because that would turn an asynchronous `fit` into one that waits at every step; and rather than
    an argument of each step, because to hand one over costs JAX 8 µs.
    """

    def __init__(self, steps: int, look_up: LookUp) -> None:
        self.steps = steps
        self.look_up = look_up
        self.table: Any = None

    def __call__(self, step: Any) -> Any:
        """The learning rate at `step`, a variable that counts from 0."""
        return self.look_up(self.table.value, step.value, self.steps)


def indexed(table: Any, step: Any, steps: int) -> Any:
    """The rate of a step, where nothing else has to be thought of."""
    return table[step % steps]


@dataclass(eq=False)
class Optimizer:
    """A Keras optimizer built on a model's variables, and the variables that take the run's numbers.

    `slots` has its state by the names of `harness.core.training.training_state`, a variable for each that is
    trained, or none where Keras keeps nothing (a momentum of 0). `steps` is the count with which the run
    began.
    """

    keras: Any
    rates: Rates
    inputs: dict[str, Any]
    slots: dict[str, list[Any]] = field(default_factory=dict)
    steps: int = 0
    _rates_set: npt.NDArray[np.float64] | None = None

    def reset(self, rule: Rule, steps: int = 0) -> None:
        """Set the state to zero and the step count to `steps`, and take the numbers of `rule`."""
        self.steps = steps
        self._rates_set = None
        values: dict[int, float] = {id(self.keras.iterations): steps}
        given = numbers(rule)
        values |= {id(variable): given[name] for name, variable in self.inputs.items()}
        for variable in self.keras.variables:
            variable.assign(np.full(variable.shape, values.get(id(variable), 0), dtype=variable.dtype))

    def set_rates(self, rates: npt.NDArray[np.float64]) -> None:
        """Take the rates of an epoch, `[steps]`; to assign what is there already would cost JAX 0.2 ms."""
        if (table := self.new_table(rates)) is not None:
            self.rates.table.assign(table)

    def new_table(self, rates: npt.NDArray[np.float64]) -> npt.NDArray[Any] | None:
        """The table of an epoch, or None where the epoch before had the same since the last `reset`."""
        if self._rates_set is not None and np.array_equal(self._rates_set, rates):
            return None
        self._rates_set = rates.copy()
        return self.table(rates)

    def table(self, rates: npt.NDArray[np.float64]) -> npt.NDArray[Any]:
        """The table of an epoch: the rates, turned so that the first lies where the step count points to."""
        turn = self.steps % len(rates)
        return (np.roll(rates, turn) if turn else rates).astype(self.rates.table.dtype)

    def name(self) -> str:
        """What is recorded as the optimizer that ran."""
        if isinstance(self.keras, Shared):
            return f"harness.core.training.optimizers.{type(self.keras.rule).__name__}"
        public = next(kind for kind in _NATIVE if isinstance(self.keras, kind))
        return f"keras.optimizers.{public.__name__}"


def build(rule: Rule, variables: Sequence[Any], steps: int, precision: Storage, look_up: LookUp) -> Optimizer:
    """The optimizer of a program, from what `harness.core.training.optimizers.program_rule` leaves of its
    rule."""
    rates = Rates(steps, look_up)
    optimizer = Shared(rule, rates) if rule.impl == "shared" else _native(rule, rates, precision)
    optimizer.build(variables)
    rates.table = optimizer.add_variable((steps,), dtype=precision, name="learning_rates")
    if isinstance(optimizer, Shared):
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

    In float64 the numbers are NumPy's, since `ops.cast(0.9, "float64")` on TensorFlow gives the float32
    number next to 0.9; in float32 they stay Python's, which take the dtype of the weights.
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
    """Where Keras' own optimizer keeps the slots of a rule, in the order of the variables that it trains."""
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

    The base is taken from an instance: on torch, Keras makes one of another class that updates all variables
    at once, which a plain subclass of keras.optimizers.SGD would lose.
    """
    base: Any = type(keras.optimizers.SGD())

    class CoupledSGD(base):  # type: ignore[misc]
        coupled_decay: Any

        def apply(self, grads: Sequence[Any], trainable_variables: Sequence[Any] | None = None) -> None:
            """Add weight_decay * w to each gradient, then update as Keras does."""
            variables = self._trainable_variables if trainable_variables is None else trainable_variables
            decay = ops.convert_to_tensor(self.coupled_decay)
            decayed = [g + decay * ops.convert_to_tensor(w) for g, w in zip(grads, variables, strict=True)]
            super().apply(decayed, trainable_variables)

    return CoupledSGD


class Shared(keras.optimizers.Optimizer):  # type: ignore[misc]
    """`rule.update` on the tensors of any backend; every number of the rule is a variable."""

    def __init__(self, rule: Rule, rates: Rates) -> None:
        super().__init__(rates)
        self.rule = rule
        self.inputs: dict[str, Any] = {}
        self.slots: dict[str, list[Any]] = {}

    def build(self, variables: Sequence[Any]) -> None:
        """Make the state of each variable, and the variables for the rule's numbers."""
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
