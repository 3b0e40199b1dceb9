"""Keras on torch: a loop of our own over the Keras model, with torch's autograd."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from adapters.keras import losses
from adapters.keras.fit import Fit
from adapters.keras.program import Array, Parts, Program, parts
from harness.adapter import AdapterOptions, Execution, Plan
from harness.parse import ConfigError, Mistake

EXECUTIONS: tuple[Execution, ...] = ("idiomatic", "eager")


def configure(options: AdapterOptions) -> None:
    """Set the threads; Keras took its device from the environment."""
    torch.set_num_threads(options.threads)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError([Mistake("device", f"{options.device!r} was asked for, torch sees no GPU")])


def environment(options: AdapterOptions) -> dict[str, object]:
    """Version, threads, devices, and whether matrix products on a GPU may use TF32."""
    cuda = options.device == "cuda"
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "inter_op_threads": torch.get_num_interop_threads(),
        "devices": [torch.cuda.get_device_name(0)] if cuda else ["cpu"],
        "tf32": torch.backends.cuda.matmul.allow_tf32,
    }


def build(plan: Plan) -> Program:
    """The program of a plan."""
    made = parts(plan)
    if plan.execution == "eager":
        return Program(made, _Eager(made), {"xla": False})
    device = torch.device(plan.device)
    fit = Fit(
        made,
        lambda x: _predict(made, x),
        restart=_seed,
        sync=lambda: _wait(device),
        compilations=lambda: 0,
    )
    _build_loss(made)
    return Program(made, fit, {"xla": False, "torch_compile": bool(made.model.keras.jit_compile)})


class _Eager:
    """One step at a time; rows on the device, the state in Keras' variables."""

    def __init__(self, made: Parts) -> None:
        self._made = made
        self._device = torch.device(made.plan.device)
        self._trainable = made.trainable
        self._parameters: list[torch.Tensor] = [variable.value for variable in self._trainable]
        self._x = self._y = torch.empty(0)
        self._losses: list[torch.Tensor] = []

    def feed(self, x: Array, y: Array) -> None:
        self._x, self._y = (torch.as_tensor(each, device=self._device) for each in (x, y))

    def restart(self, seed: int) -> None:
        _seed(seed)

    def train_epoch(self, order: npt.NDArray[np.int32], learning_rates: npt.NDArray[np.float64]) -> None:
        made = self._made
        model, apply = made.model.keras, made.optimizer.keras.apply
        made.optimizer.set_rates(learning_rates)
        self._losses = []
        for rows in torch.as_tensor(order, device=self._device).unbind():
            outputs = model(self._x[rows], training=True)
            loss = made.loss(self._y[rows], outputs)
            gradients = torch.autograd.grad(loss, self._parameters)
            with torch.no_grad():
                apply(gradients, self._trainable)
            self._losses.append(loss.detach())

    def losses(self) -> Array:
        stacked: Array = torch.stack(self._losses).cpu().numpy()
        return stacked

    def predict(self, x: Array) -> Array:
        return _predict(self._made, x)

    def read(self, variables: Sequence[Any]) -> list[Array]:
        return [variable.value.detach().cpu().numpy() for variable in variables]

    def sync(self) -> None:
        _wait(self._device)

    def compilations(self) -> int:
        """Nothing is ever compiled."""
        return 0


def _build_loss(made: Parts) -> None:
    """Build the compiled loss now. Else the first `fit` tries the whole model out for it, which draws dropout
    masks from torch's stream, and the first run of a program gets other masks than the later ones."""
    plan = made.plan
    outputs = np.zeros((1, *plan.network.out_shape), dtype=plan.precision)
    y = losses.targets(plan.loss, outputs if plan.loss == "mse" else np.zeros(1, np.int64), plan.precision)
    with torch.no_grad():
        made.model.keras.compute_loss(
            y=torch.as_tensor(y, device=plan.device), y_pred=torch.as_tensor(outputs, device=plan.device)
        )


def _seed(seed: int) -> None:
    """Seed torch, from whose global stream Keras' dropout draws."""
    torch.manual_seed(seed)


def _predict(made: Parts, x: Array) -> Array:
    with torch.no_grad():
        outputs = made.model.keras(torch.as_tensor(x, device=made.plan.device), training=False)
    array: Array = outputs.cpu().numpy()
    return array


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
