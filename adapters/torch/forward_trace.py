"""Trace a forward pass: which layers compute in float32, and which operations of torch run.

Both are recorded with every result, as `float32_layers` and `recurrent_kernels` in the program's settings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from adapters.torch.model import Model


@dataclass(frozen=True)
class ForwardTrace:
    """The layers and operations of a forward pass.

    `float32_layers`: `outputs` for the network's own outputs, then the class names of modules with weights
    whose outputs are float32; results contain these names, so renaming such a class changes results.
    `operations`: the names of torch's operations.
    """

    float32_layers: tuple[str, ...]
    operations: tuple[str, ...]


class _OperationRecorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the names of the operations that torch's dispatcher runs, for example `mkldnn_rnn_layer`."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: set[str] = set()

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: Sequence[type],
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def trace_forward(model: Model, device: torch.device) -> ForwardTrace:
    """Run a row of zeros in evaluation mode, which draws no dropout masks and changes no statistics."""
    float32_layers: set[str] = set()
    weighted = [module for module in model.module.modules() if any(True for _ in module.parameters(False))]

    def record_dtype(module: nn.Module, _: object, output: Tensor | tuple[Tensor, ...]) -> None:
        outputs = output if isinstance(output, tuple) else (output,)
        if outputs[0].dtype == torch.float32:
            float32_layers.add(type(module).__name__)

    sample = model.network.input
    dtype = next(iter(model.module.parameters())).dtype
    x = torch.zeros(1, *sample.shape, dtype=torch.int64 if sample.vocabulary else dtype, device=device)
    lengths = (torch.ones(1, dtype=torch.int64, device=device),) if sample.lengths else ()
    hooks = [module.register_forward_hook(record_dtype) for module in weighted]
    try:
        model.module.eval()
        with _OperationRecorder() as recorder:  # with gradients, as in training: some kernels have none
            model.module(x, *lengths)
    finally:
        model.module.train()
        for hook in hooks:
            hook.remove()
    return ForwardTrace(("outputs", *sorted(float32_layers)), tuple(sorted(recorder.names)))
