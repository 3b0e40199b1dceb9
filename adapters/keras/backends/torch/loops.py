"""Keras on torch: a loop of our own over the Keras model, with torch's autograd."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, assert_never

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from adapters.keras import losses
from adapters.keras.backends.torch.device import wait
from adapters.keras.fit import Arrays, Fit
from adapters.keras.program import Array, Inputs, Parts, Program, native, parts
from harness.core.adapter import Epoch, Execution, Loss, Plan
from harness.core.network import Conv2D

EXECUTIONS: tuple[Execution, ...] = ("idiomatic", "eager")


def build(plan: Plan) -> Program:
    """The program of a plan."""
    made = parts(plan, "none", _look_up)
    _lay_out(made)
    if plan.execution != "idiomatic":
        return Program(made, _Loop(made), {"xla": False, "torch_compile": False}, stream=_Stream(plan.device))
    device = torch.device(plan.device)
    fit = Fit(
        made,
        lambda inputs: _predict(made, inputs),
        seed=_seed,
        sync=lambda: wait(device),
        compilations=lambda: 0,
        source=Arrays(plan.steps, plan.batch_size),
    )
    _build_loss(made)
    settings = {"xla": False, "torch_compile": bool(made.model.keras.jit_compile)}
    return Program(made, fit, settings, stream=_Stream(plan.device))


def _look_up(table: torch.Tensor, step: torch.Tensor, steps: int) -> torch.Tensor:
    """The rate of a step. By a Python number that takes half as long, but to read one from a GPU is to wait,
    as torch does by itself where a tensor is indexed by a scalar one."""
    on_cpu = table.device.type == "cpu"
    return table[int(step) % steps] if on_cpu else table.take((step % steps).to(torch.int64))


class _Loop:
    """One step at a time; rows on the device, the state in Keras' variables."""

    def __init__(self, made: Parts) -> None:
        self._made = made
        self._device = torch.device(made.plan.device)
        self._loss = _mean_loss(made.plan.loss)
        self._trainable = made.trainable
        self._parameters: list[torch.Tensor] = [variable.value for variable in self._trainable]
        self._inputs: Inputs = ()
        self._y = torch.empty(0)
        self._losses: list[torch.Tensor] = []

    def _batch_loss(self, inputs: Inputs, y: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        outputs = self._made.model.keras(native(tuple(each[rows] for each in inputs)), training=True)
        return self._loss(outputs, y[rows])

    def feed(self, inputs: Inputs, y: Array) -> None:
        self._inputs = _tensors(inputs, self._device)
        classes = self._made.plan.loss == "cross_entropy"
        self._y = torch.as_tensor(y, device=self._device, dtype=torch.int64 if classes else None)

    def restart(self, seed: int) -> None:
        _seed(seed)

    def train(self, epochs: Iterable[Epoch]) -> None:
        for order, rates in epochs:
            self._made.optimizer.set_rates(rates)
            self._train(order)

    def _train(self, order: npt.NDArray[np.int32]) -> None:
        apply = self._made.optimizer.keras.apply
        self._losses = []
        for rows in torch.as_tensor(order, device=self._device).unbind():
            loss = self._batch_loss(self._inputs, self._y, rows)
            gradients = torch.autograd.grad(loss, self._parameters)
            with torch.no_grad():
                apply(gradients, self._trainable)
            self._losses.append(loss.detach())

    def losses(self) -> Array:
        stacked: Array = torch.stack(self._losses).cpu().numpy()
        return stacked

    def predict(self, inputs: Inputs) -> Array:
        return _predict(self._made, inputs)

    def read(self, variables: Sequence[Any]) -> list[Array]:
        return [variable.value.detach().cpu().numpy() for variable in variables]

    def sync(self) -> None:
        wait(self._device)

    def compilations(self) -> int:
        """Nothing is ever compiled."""
        return 0


def _mean_loss(loss: Loss) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """The mean loss of (outputs, y), by torch itself: Keras' way to it takes 5 % of a small step."""
    match loss:
        case "cross_entropy":
            return functional.cross_entropy
        case "binary_cross_entropy":
            return functional.binary_cross_entropy_with_logits
        case "mse":
            return functional.mse_loss
        case _:
            assert_never(loss)


def _lay_out(made: Parts) -> None:
    """Give the kernels of convolutions to one filter the strides that torch expects. Its float64 convolution
    has no gradient for one that Keras made, whose last axis, of length 1, says nothing about the layout."""
    for node in made.plan.network.layers():
        if isinstance(node.layer, Conv2D) and node.layer.filters == 1:
            value = made.model.parameters[node.weight_names()["kernel"]].value
            native = value.data.permute(3, 2, 0, 1).clone(memory_format=torch.channels_last)
            value.data = native.permute(2, 3, 1, 0)


def _build_loss(made: Parts) -> None:
    """Build the compiled loss now. Else the first `fit` tries the whole model out for it, which draws dropout
    masks from torch's stream, and the first run of a program gets other masks than the later ones."""
    plan = made.plan
    outputs = np.zeros((1, *plan.network.out_shape), dtype=plan.dtype)
    y = losses.targets(plan.loss, outputs if plan.loss == "mse" else np.zeros(1, np.int64), plan.dtype)
    with torch.no_grad():
        made.model.keras.compute_loss(
            y=torch.as_tensor(y, device=plan.device), y_pred=torch.as_tensor(outputs, device=plan.device)
        )


def _seed(seed: int) -> None:
    """Seed torch, from whose global stream Keras' dropout draws."""
    torch.manual_seed(seed)


class _Stream:
    """Torch's stream of a device, see `adapters.keras.program.Stream`."""

    def __init__(self, device: str) -> None:
        self._device = torch.device(device)
        self.name = f"torch.{self._device.type}"

    def place(self) -> Array:
        cuda = self._device.type == "cuda"
        state = torch.cuda.get_rng_state(self._device) if cuda else torch.get_rng_state()
        copied: Array = state.numpy().copy()
        return copied

    def go_to(self, place: Array) -> None:
        state = torch.from_numpy(place.copy())
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(state, self._device)
        else:
            torch.set_rng_state(state)


def _tensors(inputs: Inputs, device: torch.device | str) -> Inputs:
    return tuple(torch.as_tensor(each, device=device) for each in inputs)


def _predict(made: Parts, inputs: Inputs) -> Array:
    with torch.no_grad():
        outputs = made.model.keras(native(_tensors(inputs, made.plan.device)), training=False)
    array: Array = outputs.cpu().numpy()
    return array
