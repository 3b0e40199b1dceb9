"""What torch.compile gets to see: the gradient of a batch, or a whole step.

The gradient is taken by `torch.func.grad_and_value` inside the compiled function, so that gathering the
batch, forward and backward are one graph. `loss.backward()` on a compiled forward gives two graphs with the
autograd engine between them, which took 1.2 to 2.5 times as long on a CPU (dense and transformer models).

Under the shared rule the update belongs to the graph too. torch.optim stays outside: its fused kernels are
not traced, and it makes constants of numbers that a sweep varies.
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

Named = dict[str, Tensor]
Inputs = tuple[Tensor, ...]
"""What the network takes: x, and of padded sequences their lengths."""
Gradient = Callable[[Named, Named, Inputs, Tensor, Tensor], tuple[Named, Tensor]]
"""(weights, state, inputs, y, rows of the batch) -> (gradients, loss); updates the state"""
Step = Callable[[Named, Named, list[Slots], Named, Inputs, Tensor, Tensor, Tensor, Tensor], Tensor]
"""(weights, state, slots, numbers, inputs, y, rows of the batch, learning rate, t) -> loss; updates weights,
state and slots"""


class Compiler:
    """torch.compile with the inductor backend, counting how often that is called: once per compilation."""

    def __init__(self) -> None:
        self.compilations = 0
        # a pool of compiler processes would use more cores than the run was given, and could outlive a kill
        torch._inductor.config.compile_threads = torch.get_num_threads()
        # what `dynamic=False` says, which costs 12 µs at each call; here it is said once for the process
        torch._dynamo.config.assume_static_by_default = True
        torch._dynamo.config.automatic_dynamic_shapes = False
        self._inductor = lookup_backend("inductor")

    def __call__(self, function: Callable[..., Any]) -> Any:
        """The compiled function, apart from all others: no program counts against another's limits.

        What was compiled is kept by code object. One of its own does what `isolate_recompiles` would, which
        costs 8 µs at each call. Of what dynamo checks at each call only the tensors are kept: nobody else
        has the module, and it is in training mode whenever it gets here. The rest would cost 50 µs.
        """
        assert isinstance(function, FunctionType)
        code, closure = function.__code__.replace(), function.__closure__
        own = FunctionType(code, function.__globals__, function.__name__, function.__defaults__, closure)
        options: dict[str, Any] = {"guard_filter_fn": torch.compiler.keep_tensor_guards_unsafe}
        return torch.compile(own, backend=self._backend, fullgraph=True, options=options)

    def _backend(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        self.compilations += 1
        return self._inductor(graph, inputs)


def gradient(module: nn.Module, criterion: Criterion) -> Gradient:
    """The function that gives gradients and loss of a batch."""

    def loss(weights: Named, state: Named, inputs: Inputs, y: Tensor, rows: Tensor) -> tuple[Tensor, Named]:
        # running statistics are changed in place, which torch.func allows for what was made inside of it
        state = {name: value.clone() for name, value in state.items()}
        outputs = functional_call(module, (weights, state), tuple(x[rows] for x in inputs))
        return criterion(outputs, y[rows]), state

    differentiate = grad_and_value(loss, has_aux=True)

    def result(weights: Named, state: Named, inputs: Inputs, y: Tensor, rows: Tensor) -> tuple[Named, Tensor]:
        gradients, (value, new) = differentiate(weights, state, inputs, y, rows)
        for name, kept in state.items():
            kept.copy_(new[name])
        return gradients, value

    return result


def whole_step(module: nn.Module, criterion: Criterion, rule: Rule) -> Step:
    """The function that does one step with the harness's rule, in place."""
    differentiate = gradient(module, criterion)

    def step(
        weights: Named,
        state: Named,
        slots: list[Slots],
        numbers: Named,
        inputs: Inputs,
        y: Tensor,
        rows: Tensor,
        lr: Tensor,
        t: Tensor,
    ) -> Tensor:
        gradients, loss = differentiate(weights, state, inputs, y, rows)
        for (name, weight), of_weight in zip(weights.items(), slots, strict=True):
            optimizers.update(rule, weight, gradients[name], of_weight, numbers, lr, t)
        return loss

    return step
