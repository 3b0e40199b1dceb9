"""Recurrent layers: torch's fused modules, and the same cells unrolled for torch.compile.

torch.compile does not trace the fused modules. Unrolled, a network of 28 steps takes 7 (simple), 16 (LSTM) or
27 (GRU) seconds of CPU time to compile, in proportion to the steps, and then runs in 0.5, 1.0 and 0.5 times
the time of the fused modules on a CPU. Two alternatives were measured: with the fused modules outside the
graph, compilation takes 1.5 s but gains nothing over eager mode; torch's `scan` takes 50 times as long.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import assert_never

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adapters.torch.weight_binding import BuiltLayer, Layout, Padding, WeightBinding, as_is, bind
from harness.core.network import GRU, LSTM, Network, Node, SimpleRNN

Recurrent = SimpleRNN | LSTM | GRU

UNROLLED_STEPS = 64
"""The limit for unrolling, summed over all layers and directions: about one minute of compilation."""


def steps(network: Network) -> int:
    """Count the sequential steps of recurrent cells in one forward pass."""
    total = 0
    for node in network.layers():
        if isinstance(node.layer, SimpleRNN | LSTM | GRU):
            total += node.in_shape[0] * (2 if node.layer.bidirectional else 1)
    return total


def is_kernel(operation: str) -> bool:
    """Return whether a torch operation belongs to a recurrent layer.

    Such an operation is all steps in one kernel of oneDNN or cuDNN, or a cell's step in a kernel of torch.
    """
    return any(name in operation for name in ("rnn", "lstm", "gru"))


class Unrolled(nn.Module):
    """One direction of a recurrent layer, step by step, with the parameters of torch's own module.

    Returns the state at every step, `[batch, steps, units]`, or only the last one, `[batch, 1, units]`.
    """

    weight_ih_l0: Tensor
    weight_hh_l0: Tensor
    bias_ih_l0: Tensor
    bias_hh_l0: Tensor

    def __init__(
        self, layer: Recurrent, features: int, last_only: bool, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__()
        self.layer, self.last_only = layer, last_only
        rows = {SimpleRNN: 1, LSTM: 4, GRU: 3}[type(layer)] * layer.units
        shapes: dict[str, tuple[int, ...]] = {
            "weight_ih_l0": (rows, features),
            "weight_hh_l0": (rows, layer.units),
            "bias_ih_l0": (rows,),
        }
        if isinstance(layer, GRU):
            shapes["bias_hh_l0"] = (rows,)
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.zeros(shape, dtype=dtype, device=device)))

    def forward(self, x: Tensor) -> tuple[Tensor]:
        # one product projects the inputs of all steps
        projected = F.linear(x.transpose(0, 1), self.weight_ih_l0, self.bias_ih_l0).unbind(0)
        states = list(self._states(projected, x.new_zeros(len(x), self.layer.units)))
        return (torch.stack(states[-1:] if self.last_only else states, 1),)

    def _states(self, projected: tuple[Tensor, ...], h: Tensor) -> Iterator[Tensor]:
        recurrent, c = self.weight_hh_l0.t(), h
        for x in projected:
            match self.layer:
                case SimpleRNN():
                    h = torch.addmm(x, h, recurrent).tanh()
                case LSTM():
                    i, f, g, o = torch.addmm(x, h, recurrent).chunk(4, 1)
                    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
                    h = o.sigmoid() * c.tanh()
                case GRU():
                    of_x, of_h = x.chunk(3, 1), torch.addmm(self.bias_hh_l0, h, recurrent).chunk(3, 1)
                    r, z = (of_x[0] + of_h[0]).sigmoid(), (of_x[1] + of_h[1]).sigmoid()
                    h = (1 - z) * (of_x[2] + r * of_h[2]).tanh() + z * h
                case _:
                    assert_never(self.layer)
            yield h


class RecurrentLayer(nn.Module):
    """A recurrent layer in one or two directions; returns all states or the last one.

    For padded sequences the backward direction is a separate module over rows that are reversed within their
    lengths. Otherwise torch's kernel computes both directions at once.
    """

    def __init__(
        self, node: Node, layer: Recurrent, unrolled: bool, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__()
        self.dtype = dtype
        self.sequence = layer.returns == "sequence"
        self.fused_directions = layer.bidirectional and not unrolled and not node.masked
        last_only = not self.sequence and not node.masked

        def build_direction() -> nn.Module:
            features = node.in_shape[-1]
            if unrolled:
                return Unrolled(layer, features, last_only, dtype, device)
            return _fused_module(layer, features, self.fused_directions, dtype, device)

        self.forward_cells = build_direction()
        separate_backward = layer.bidirectional and not self.fused_directions
        self.backward_cells = build_direction() if separate_backward else None

    def forward(self, x: Tensor, padding: Padding | None) -> Tensor:
        if x.dtype != self.dtype:
            # in mixed precision x may be bfloat16, which torch's own modules do not accept
            x = x.to(self.dtype)
        states: Tensor = self.forward_cells(x)[0]
        if self.fused_directions:
            forward, backward = states.chunk(2, -1)
            return states if self.sequence else torch.cat((forward[:, -1], backward[:, 0]), -1)
        if self.backward_cells is None:
            return states if self.sequence else _last_valid(states, padding)
        backward = self.backward_cells(_reverse_valid(x, padding))[0]
        if self.sequence:
            return torch.cat((states, _reverse_valid(backward, padding)), -1)
        return torch.cat((_last_valid(states, padding), _last_valid(backward, padding)), -1)


def recurrent(
    node: Node, layer: Recurrent, unrolled: bool, dtype: torch.dtype, device: torch.device
) -> BuiltLayer:
    """Build a recurrent layer.

    torch's kernels are (out, in), and the gates of its GRU are in the order r, z, n. Its other cells have a
    second bias, which is frozen at zero here.
    """
    module = RecurrentLayer(node, layer, unrolled, dtype, device)
    bindings = _bindings(node, layer, module.forward_cells, "", "_l0")
    if layer.bidirectional:
        cells = module.forward_cells if module.backward_cells is None else module.backward_cells
        bindings += _bindings(
            node, layer, cells, "backward_", "_l0_reverse" if module.fused_directions else "_l0"
        )
    return BuiltLayer(module, bindings)


def _fused_module(
    layer: Recurrent, features: int, bidirectional: bool, dtype: torch.dtype, device: torch.device
) -> nn.RNNBase:
    kind = {SimpleRNN: nn.RNN, LSTM: nn.LSTM, GRU: nn.GRU}[type(layer)]
    module: nn.RNNBase = kind(
        features, layer.units, batch_first=True, bidirectional=bidirectional, dtype=dtype, device=device
    )
    if not isinstance(layer, GRU):
        for name, parameter in module.named_parameters():
            if name.startswith("bias_hh"):
                parameter.requires_grad_(False).zero_()
    return module


def _bindings(
    node: Node, layer: Recurrent, cells: nn.Module, prefix: str, suffix: str
) -> tuple[WeightBinding, ...]:
    """Bind the weights of one direction: `prefix` is of the canonical names, `suffix` of torch's."""
    names = node.weight_names()
    gates: Layout = _swap_first_two if isinstance(layer, GRU) else as_is

    def to_native(kernel: Tensor) -> Tensor:
        return gates(kernel.t())

    def to_canonical(weight: Tensor) -> Tensor:
        return gates(weight).t()

    def parameter(name: str) -> Tensor:
        tensor: Tensor = getattr(cells, name + suffix)
        return tensor

    kernel, recurrent_kernel, bias = (names[prefix + name] for name in ("kernel", "recurrent_kernel", "bias"))
    kernels = (
        bind(kernel, parameter("weight_ih"), to_native, to_canonical),
        bind(recurrent_kernel, parameter("weight_hh"), to_native, to_canonical),
    )
    if not isinstance(layer, GRU):
        return (*kernels, bind(bias, parameter("bias_ih")))

    def stack_biases(tensors: Sequence[Tensor]) -> Tensor:
        return torch.stack([gates(tensor) for tensor in tensors])

    def copy_biases(tensors: Sequence[Tensor], value: Tensor) -> None:
        for tensor, part in zip(tensors, value, strict=True):
            tensor.copy_(gates(part))

    biases = parameter("bias_ih"), parameter("bias_hh")
    return (*kernels, WeightBinding(bias, biases, stack_biases, copy_biases))


def _swap_first_two(gates: Tensor) -> Tensor:
    """Convert the rows of a GRU's gates from z, r, n to r, z, n, or back."""
    first, second, third = gates.chunk(3)
    return torch.cat((second, first, third))


def _last_valid(states: Tensor, padding: Padding | None) -> Tensor:
    """Return the state at the last valid step, `[batch, units]`."""
    if padding is None:
        return states[:, -1]
    index = (padding.lengths - 1).view(-1, 1, 1).expand(-1, 1, states.shape[-1])
    return states.gather(1, index).squeeze(1)


def _reverse_valid(x: Tensor, padding: Padding | None) -> Tensor:
    """Reverse the valid steps of each row; padding stays in place."""
    if padding is None:
        return x.flip(1)
    step = torch.arange(x.shape[1], device=x.device)
    index = torch.where(padding.valid, padding.lengths.unsqueeze(1) - 1 - step, step)
    return x.gather(1, index.unsqueeze(-1).expand_as(x))
