"""Keras on torch: a loop of our own over the Keras model, with torch's autograd."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, assert_never

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from adapters.keras import losses
from adapters.keras.backends.torch import thread_state
from adapters.keras.fit import Arrays, Fit
from adapters.keras.program import Array, Inputs, Parts, Program, native, parts
from harness.core.adapter import AdapterOptions, Epoch, Execution, Loss, Plan, factors
from harness.core.machine import precision
from harness.core.network import Conv2D
from harness.core.validation import ConfigError, Mistake

EXECUTIONS: tuple[Execution, ...] = ("idiomatic", "eager")


def configure(options: AdapterOptions) -> None:
    """Set the threads and what a card may round; Keras took its device from the environment."""
    torch.set_num_threads(options.threads)
    thread_state.fill()
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError([Mistake("device", f"{options.device!r} was asked for, torch sees no GPU")])
    capability = torch.cuda.get_device_capability() if options.device == "cuda" else None
    if refused := precision.mistakes(options.precision, options.device, capability):
        raise ConfigError(refused)
    # torch's own default is that convolutions and recurrent layers may round, and matrix products may not
    torch.set_float32_matmul_precision("high" if options.precision == "tf32" else "highest")
    torch.backends.cuda.matmul.allow_tf32 = options.precision == "tf32"
    torch.backends.cudnn.allow_tf32 = options.precision == "tf32"


def environment(options: AdapterOptions) -> dict[str, object]:
    """Versions, threads, devices, and whether products on a GPU may use TF32."""
    cuda = options.device == "cuda"
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "inter_op_threads": torch.get_num_interop_threads(),
        "devices": [torch.cuda.get_device_name(0)] if cuda else ["cpu"],
        "tf32": torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32,
        **({"cuda": torch.version.cuda, "cudnn": _cudnn()} if cuda else {}),
    }


def _cudnn() -> int | None:
    version: int | None = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    return version


def start_device_peak(options: AdapterOptions) -> bool:
    """The caching allocator counts what tensors take."""
    if options.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    return True


def device_peak_mb(options: AdapterOptions) -> float | None:
    """Of tensors; what the allocator keeps in reserve for others is not in it."""
    return torch.cuda.max_memory_allocated() / 1e6 if options.device == "cuda" else None


def product(size: int, options: AdapterOptions) -> Callable[[], None]:
    """A product of two matrices of so many rows, as a function that returns when it is computed."""
    device, dtype = torch.device(options.device), getattr(torch, factors(options.precision))
    left, right, result = torch.rand(3, size, size, dtype=dtype, device=device)

    def multiply() -> None:
        torch.mm(left, right, out=result)
        _wait(device)

    return multiply


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
        sync=lambda: _wait(device),
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
        _wait(self._device)

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


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
