"""The functions that torch.compile compiles: the gradient of a batch, or a whole training step.

The gradient is computed by `torch.func.grad_and_value` inside the compiled function, so gathering the batch,
forward and backward form one graph. `loss.backward()` on a compiled forward gives two graphs with the
autograd engine between them, which took 1.2 to 2.5 times as long on a CPU (dense and transformer models).

With the shared rule the update is part of the graph too. torch.optim stays outside: its fused kernels are not
traced, and tracing turns numbers that a sweep varies into constants.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.backends.registry import lookup_backend
from torch.func import functional_call, grad_and_value

from adapters.torch import optimizers
from adapters.torch.model import Criterion
from adapters.torch.optimizers import Slots
from harness.core.training.optimizers import Rule

NamedTensors = dict[str, Tensor]
Inputs = tuple[Tensor, ...]
"""The inputs of the network: x, and the lengths of padded sequences."""
GradientFunction = Callable[[NamedTensors, NamedTensors, Inputs, Tensor, Tensor], tuple[NamedTensors, Tensor]]
"""(weights, state, inputs, y, rows of the batch) -> (gradients, loss); updates the state"""
StepFunction = Callable[
    [NamedTensors, NamedTensors, list[Slots], NamedTensors, Inputs, Tensor, Tensor, Tensor, Tensor], Tensor
]
"""(weights, state, slots, numbers, inputs, y, rows of the batch, learning rate, t) -> loss; updates weights,
state and slots"""


class Compiler:
    """torch.compile with the inductor backend; counts compilations, which are the calls of the backend."""

    def __init__(self) -> None:
        self.compilations = 0
        # a pool of compiler processes would use more cores than the run has, and could survive a kill
        torch._inductor.config.compile_threads = torch.get_num_threads()
        # the same as `dynamic=False`, which costs 12 µs at each call; set once for the process
        torch._dynamo.config.assume_static_by_default = True
        torch._dynamo.config.automatic_dynamic_shapes = False
        self._inductor = lookup_backend("inductor")

    def __call__(self, function: Callable[..., Any]) -> Any:
        """Compile a function in isolation: no program counts against another's recompilation limit.

        Dynamo caches by code object. A copy of the code object has the effect of `isolate_recompiles`, which
        costs 8 µs at each call. Of dynamo's guards only those of tensors are kept, since no other code uses
        the module and it is in training mode at each call. The other guards would cost 50 µs.
        """
        assert isinstance(function, FunctionType)
        code, closure = function.__code__.replace(), function.__closure__
        copy = FunctionType(code, function.__globals__, function.__name__, function.__defaults__, closure)
        options: dict[str, Any] = {"guard_filter_fn": torch.compiler.keep_tensor_guards_unsafe}
        return torch.compile(copy, backend=self._backend, fullgraph=True, options=options)

    def _backend(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        self.compilations += 1
        return self._inductor(graph, inputs)


def gradient(module: nn.Module, criterion: Criterion) -> GradientFunction:
    """Return the function that computes gradients and loss of a batch."""

    def loss(
        weights: NamedTensors, state: NamedTensors, inputs: Inputs, y: Tensor, rows: Tensor
    ) -> tuple[Tensor, NamedTensors]:
        # running statistics change in place, which torch.func allows only for tensors created inside it
        state = {name: value.clone() for name, value in state.items()}
        outputs = functional_call(module, (weights, state), tuple(x[rows] for x in inputs))
        return criterion(outputs, y[rows]), state

    differentiate = grad_and_value(loss, has_aux=True)

    def gradients_and_loss(
        weights: NamedTensors, state: NamedTensors, inputs: Inputs, y: Tensor, rows: Tensor
    ) -> tuple[NamedTensors, Tensor]:
        gradients, (value, new_state) = differentiate(weights, state, inputs, y, rows)
        for name, buffer in state.items():
            buffer.copy_(new_state[name])
        return gradients, value

    return gradients_and_loss


def training_step(module: nn.Module, criterion: Criterion, rule: Rule) -> StepFunction:
    """Return the function that does one training step with the shared rule, in place."""
    differentiate = gradient(module, criterion)

    def step(
        weights: NamedTensors,
        state: NamedTensors,
        slots: list[Slots],
        numbers: NamedTensors,
        inputs: Inputs,
        y: Tensor,
        rows: Tensor,
        lr: Tensor,
        t: Tensor,
    ) -> Tensor:
        gradients, loss = differentiate(weights, state, inputs, y, rows)
        for (name, weight), weight_slots in zip(weights.items(), slots, strict=True):
            optimizers.update(rule, weight, gradients[name], weight_slots, numbers, lr, t)
        return loss

    return step
