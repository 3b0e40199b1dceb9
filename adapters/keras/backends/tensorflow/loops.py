"""The training loops on TensorFlow: a step or the whole epoch as a `tf.function`, with or without XLA, or
`fit`.

Data, order and learning rates are arguments or variables, so a program serves every run of the same shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from adapters.keras.backends.tensorflow import adam_kernel
from adapters.keras.fit import Fit
from adapters.keras.parts import Array, Inputs, Parts, build_parts, native
from adapters.keras.program import Program
from harness.core.adapter import Epoch, Execution, Plan
from harness.core.network import Conv1D, Conv2D, Embedding

EXECUTIONS: tuple[Execution, ...] = ("idiomatic", "compiled", "epoch")


def build(plan: Plan) -> Program:
    """Build the program of a plan."""
    if plan.xla is None:
        plan = replace(plan, xla=_xla_is_faster(plan))
    if plan.execution == "idiomatic":
        return _idiomatic(plan)
    parts = build_parts(plan, "xla" if plan.xla else "graph", _look_up)
    # with XLA the updates are fused anyway
    by_kernel = not plan.xla and adam_kernel.use_kernel(parts.optimizer.keras)
    return Program(parts, _CompiledLoop(parts), {"xla": plan.xla, "fused": by_kernel})


def _xla_is_faster(plan: Plan) -> bool:
    """Whether XLA is likely to be faster: on a CPU it makes convolutions 2 to 16 times slower."""
    convolves = any(isinstance(node.layer, Conv1D | Conv2D) for node in plan.network.layers())
    return plan.device != "cpu" or not convolves


def _look_up(table: Any, step: Any, steps: int) -> Any:
    """The rate of a step by a gather. XLA needs the start of a slice at compile time, so with a slice it
    would compile the program again for every value of the step count."""
    return tf.gather(table, step % steps)


def _idiomatic(plan: Plan) -> Program:
    parts = build_parts(plan, "none", _look_up, _TraceCounter)
    model = parts.model.keras
    forward = _forward(parts)
    fit = Fit(
        parts,
        lambda inputs: np.asarray(forward(_constants(inputs))),
        seed=lambda seed: None,
        sync=tf.test.experimental.sync_devices,
        compilations=lambda: model.traces + forward.experimental_get_tracing_count(),
        source=_PipelineSource(plan),
    )
    sparse = any(isinstance(n.layer, Embedding) and not n.frozen for n in plan.network.layers())
    return Program(parts, fit, {"xla": bool(model.jit_compile)}, sparse)


class _PipelineSource:
    """A `tf.data` pipeline for `fit`; see `adapters.keras.fit.Source`. It reads the order of the epoch from a
    variable, because TensorFlow copies arrays when `fit` starts."""

    def __init__(self, plan: Plan) -> None:
        self._steps = plan.steps
        self._order = tf.Variable(tf.zeros((plan.steps, plan.batch_size), tf.int32), trainable=False)
        self._dataset: Any = None

    def feed(self, inputs: Inputs, y: Array) -> None:
        features, targets, order = _constants(inputs), tf.constant(y), self._order

        def batch(step: Any) -> tuple[Any, Any]:
            rows = tf.gather(order, step)
            x = tuple(tf.gather(each, rows) for each in features)  # a list would be stacked into one tensor
            return x if len(x) > 1 else x[0], tf.gather(targets, rows)

        # Nothing here needs tuning, and closing a tuned pipeline waits for its tuner to wake up from a sleep
        # about as long as the age of the pipeline, up to a minute (TensorFlow 2.21).
        options = tf.data.Options()
        options.autotune.enabled = False
        dataset = tf.data.Dataset.range(self._steps).map(batch).prefetch(tf.data.AUTOTUNE)
        self._dataset = dataset.with_options(options)

    def order(self, order: npt.NDArray[np.int32]) -> None:
        self._order.assign(order)

    def arguments(self) -> Mapping[str, Any]:
        return {"x": self._dataset}


class _TraceCounter(keras.Model):  # type: ignore[misc]
    """Counts how often `fit` traces its step; a traced step runs without this Python code."""

    traces = 0

    def train_step(self, data: Any) -> Any:
        """One step of `fit`."""
        self.traces += 1
        return super().train_step(data)


class _CompiledLoop:
    """Calls the program of a step or of an epoch; the state is in Keras' variables, the rows are on the
    device."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._forward = _forward(parts)
        whole = parts.plan.execution == "epoch"
        self._program = _whole_epoch(parts) if whole else _one_step(parts)
        self._run: Callable[[Any, Any], Any] = self._whole if whole else self._steps
        self._concrete: Any = None
        self._data: tuple[Inputs, Any] = ((), None)
        self._losses: Any = np.empty(0)

    def feed(self, inputs: Inputs, y: Array) -> None:
        self._data = (_constants(inputs), tf.constant(y))

    def restart(self, seed: int) -> None:
        """Nothing to do: Keras' variables are the state."""

    def train(self, epochs: Iterable[Epoch]) -> None:
        for order, rates in epochs:
            self._losses = self._run(tf.constant(order), rates)

    def _whole(self, order: Any, learning_rates: npt.NDArray[np.float64]) -> Any:
        # The program itself assigns the rates to the optimizer: an assignment here takes longer than two
        # steps.
        rates = tf.constant(self._parts.optimizer.table(learning_rates))
        return self._compiled(order, rates)(*self._data, order, rates)

    def _steps(self, order: Any, learning_rates: npt.NDArray[np.float64]) -> Any:
        self._parts.optimizer.set_rates(learning_rates)
        inputs, y = self._data
        steps = tf.unstack(order)
        program = self._compiled(steps[0])
        return [program(inputs, y, rows) for rows in steps]

    def _compiled(self, *arguments: Any) -> Any:
        """The program for its only signature.

        The `tf.function` would look up its signature at every call; to call the concrete function saves a
        third of a small step.
        """
        if self._concrete is None:
            self._concrete = self._program.get_concrete_function(*self._data, *arguments)
        return self._concrete

    def losses(self) -> Array:
        return np.array(self._losses)

    def predict(self, inputs: Inputs) -> Array:
        return np.asarray(self._forward(_constants(inputs)))

    def read(self, variables: Sequence[Any]) -> list[Array]:
        return [variable.numpy() for variable in variables]

    def sync(self) -> None:
        tf.test.experimental.sync_devices()

    def compilations(self) -> int:
        """The number of traces; TensorFlow does not report XLA's compilations to Python."""
        counts = (f.experimental_get_tracing_count() for f in (self._program, self._forward))
        return sum(counts)


def _constants(inputs: Inputs) -> Inputs:
    return tuple(tf.constant(each) for each in inputs)


def _forward(parts: Parts) -> Any:
    """A function from the inputs of some rows to the outputs in evaluation mode, `[rows, outputs]`."""

    @tf.function(autograph=False)  # type: ignore[untyped-decorator]
    def forward(inputs: Inputs) -> Any:
        return parts.model.keras(native(inputs), training=False)

    return forward


def _step(parts: Parts) -> Callable[..., Any]:
    """One training step, not compiled, which updates the variables and returns the loss of the batch."""
    model, optimizer, trainable = parts.model.keras, parts.optimizer.keras, parts.trainable
    variables = [variable.value for variable in trainable]

    def step(inputs: Inputs, y: Any, rows: Any) -> Any:
        batch, targets = tuple(tf.gather(each, rows) for each in inputs), tf.gather(y, rows)
        with tf.GradientTape() as tape:
            loss = parts.loss(targets, model(native(batch), training=True))
        # the gradient of an embedding has one row per token, which Keras' optimizers do not sum
        gradients = [tf.convert_to_tensor(gradient) for gradient in tape.gradient(loss, variables)]
        optimizer.apply(gradients, trainable)
        return loss

    return step


def _one_step(parts: Parts) -> Any:
    return tf.function(_step(parts), autograph=False, jit_compile=parts.plan.xla)


def _whole_epoch(parts: Parts) -> Any:
    step, plan = _step(parts), parts.plan

    @tf.function(autograph=False, jit_compile=plan.xla)  # type: ignore[untyped-decorator]
    def epoch(inputs: Inputs, y: Any, order: Any, rates: Any) -> Any:
        parts.optimizer.rates.table.assign(rates)

        def body(number: Any, losses: Any) -> tuple[Any, Any]:
            loss = step(inputs, y, order[number])
            return number + 1, losses.write(number, loss)

        losses = tf.TensorArray(plan.dtype, size=plan.steps, element_shape=())
        _, losses = tf.while_loop(lambda number, _: number < plan.steps, body, (0, losses))
        return losses.stack()

    return epoch
