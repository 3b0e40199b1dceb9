"""The training loops on torch: an eager loop with torch's autograd over the Keras model, or `fit`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, assert_never

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from adapters.keras import losses
from adapters.keras.backends.torch.device import wait
from adapters.keras.fit import ArraySource, Fit
from adapters.keras.parts import Array, Inputs, Parts, build_parts, native
from adapters.keras.program import Program
from harness.core.adapter import Epoch, Execution, Loss, Plan
from harness.core.network import Conv2D

EXECUTIONS: tuple[Execution, ...] = ("idiomatic", "eager")


def build(plan: Plan) -> Program:
    """Build the program of a plan."""
    parts = build_parts(plan, "none", _look_up)
    _fix_strides(parts)
    if plan.execution != "idiomatic":
        return Program(
            parts,
            _EagerLoop(parts),
            {"xla": False, "torch_compile": False},
            dropout_rng=_DeviceRng(plan.device),
        )
    device = torch.device(plan.device)
    fit = Fit(
        parts,
        lambda inputs: _predict(parts, inputs),
        seed=_seed,
        sync=lambda: wait(device),
        compilations=lambda: 0,
        source=ArraySource(plan.steps, plan.batch_size),
    )
    _build_loss(parts)
    settings = {"xla": False, "torch_compile": bool(parts.model.keras.jit_compile)}
    return Program(parts, fit, settings, dropout_rng=_DeviceRng(plan.device))


def _look_up(table: torch.Tensor, step: torch.Tensor, steps: int) -> torch.Tensor:
    """The rate of a step. Indexing by a Python number takes half as long, but reading the number from a GPU
    waits for it, and so does torch when a tensor is indexed by a scalar tensor."""
    on_cpu = table.device.type == "cpu"
    return table[int(step) % steps] if on_cpu else table.take((step % steps).to(torch.int64))


class _EagerLoop:
    """Runs one step at a time; the rows are on the device, the state is in Keras' variables."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._device = torch.device(parts.plan.device)
        self._loss = _mean_loss(parts.plan.loss)
        self._trainable = parts.trainable
        self._parameters: list[torch.Tensor] = [variable.value for variable in self._trainable]
        self._inputs: Inputs = ()
        self._y = torch.empty(0)
        self._losses: list[torch.Tensor] = []

    def _batch_loss(self, inputs: Inputs, y: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        outputs = self._parts.model.keras(native(tuple(each[rows] for each in inputs)), training=True)
        return self._loss(outputs, y[rows])

    def feed(self, inputs: Inputs, y: Array) -> None:
        self._inputs = _tensors(inputs, self._device)
        classes = self._parts.plan.loss == "cross_entropy"
        self._y = torch.as_tensor(y, device=self._device, dtype=torch.int64 if classes else None)

    def restart(self, seed: int) -> None:
        _seed(seed)

    def train(self, epochs: Iterable[Epoch]) -> None:
        for order, rates in epochs:
            self._parts.optimizer.set_rates(rates)
            self._train(order)

    def _train(self, order: npt.NDArray[np.int32]) -> None:
        apply = self._parts.optimizer.keras.apply
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
        return _predict(self._parts, inputs)

    def read(self, variables: Sequence[Any]) -> list[Array]:
        return [variable.value.detach().cpu().numpy() for variable in variables]

    def sync(self) -> None:
        wait(self._device)

    def compilations(self) -> int:
        """Always 0: nothing is compiled."""
        return 0


def _mean_loss(loss: Loss) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """The mean loss of (outputs, y) by torch itself: Keras' own takes 5 % of a small step."""
    match loss:
        case "cross_entropy":
            return functional.cross_entropy
        case "binary_cross_entropy":
            return functional.binary_cross_entropy_with_logits
        case "mse":
            return functional.mse_loss
        case _:
            assert_never(loss)


def _fix_strides(parts: Parts) -> None:
    """Give the kernels of convolutions with one filter the strides that torch expects. torch's float64
    convolution has no gradient for a kernel as Keras creates it: the stride of its last axis, of length 1,
    does not determine the layout."""
    for node in parts.plan.network.layers():
        if isinstance(node.layer, Conv2D) and node.layer.filters == 1:
            value = parts.model.parameters[node.weight_names()["kernel"]].value
            native = value.data.permute(3, 2, 0, 1).clone(memory_format=torch.channels_last)
            value.data = native.permute(2, 3, 1, 0)


def _build_loss(parts: Parts) -> None:
    """Build the compiled loss now. Otherwise the first `fit` runs the whole model for it, which draws dropout
    masks from torch's generator, so that the first run of a program would get other masks than later ones."""
    plan = parts.plan
    outputs = np.zeros((1, *plan.network.out_shape), dtype=plan.dtype)
    y = losses.targets(plan.loss, outputs if plan.loss == "mse" else np.zeros(1, np.int64), plan.dtype)
    with torch.no_grad():
        parts.model.keras.compute_loss(
            y=torch.as_tensor(y, device=plan.device), y_pred=torch.as_tensor(outputs, device=plan.device)
        )


def _seed(seed: int) -> None:
    """Seed torch's global generator, from which Keras' dropout draws."""
    torch.manual_seed(seed)


class _DeviceRng:
    """torch's generator of a device, see `adapters.keras.parts.DropoutRng`."""

    def __init__(self, device: str) -> None:
        self._device = torch.device(device)
        self.name = f"torch.{self._device.type}"

    def state(self) -> Array:
        cuda = self._device.type == "cuda"
        rng_state = torch.cuda.get_rng_state(self._device) if cuda else torch.get_rng_state()
        state: Array = rng_state.numpy().copy()
        return state

    def restore(self, state: Array) -> None:
        rng_state = torch.from_numpy(state.copy())
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(rng_state, self._device)
        else:
            torch.set_rng_state(rng_state)


def _tensors(inputs: Inputs, device: torch.device | str) -> Inputs:
    return tuple(torch.as_tensor(each, device=device) for each in inputs)


def _predict(parts: Parts, inputs: Inputs) -> Array:
    with torch.no_grad():
        outputs = parts.model.keras(native(_tensors(inputs, parts.plan.device)), training=False)
    array: Array = outputs.cpu().numpy()
    return array
