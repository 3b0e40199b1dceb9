"""Recurrent layers: torch's fused ones, and the same unrolled for torch.compile, which takes no others.

Unrolled, a network of 28 steps compiles for 7 (simple), 16 (LSTM) or 27 (GRU) seconds of CPU time, in
proportion to the steps, and then runs at 0.5, 1.0 and 0.5 times the time of torch's own on a CPU. What else
was tried: leaving torch's own outside of the graph compiles in 1.5 s and then is no faster than not compiling
at all; torch's `scan` takes 50 times as long.
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
"""The most steps, of all layers and directions together, that are unrolled: about a minute to compile."""


def steps(network: Network) -> int:
    """How many steps of recurrent cells one forward pass takes, one after the other."""
    found = 0
    for node in network.layers():
        if isinstance(node.layer, SimpleRNN | LSTM | GRU):
            found += node.in_shape[0] * (2 if node.layer.bidirectional else 1)
    return found


def is_kernel(operation: str) -> bool:
    """Whether an operation of torch's is a part of a recurrent layer: all steps in one kernel of oneDNN's or
    cuDNN's, or one cell's step in a kernel of torch's own."""
    return any(word in operation for word in ("rnn", "lstm", "gru"))


class Unrolled(nn.Module):
    """One direction of a recurrent layer, step by step, with the parameters of torch's own module.

    Gives the state at every step, or the last one only, `[batch, 1, units]`.
    """

    weight_ih_l0: Tensor
    weight_hh_l0: Tensor
    bias_ih_l0: Tensor
    bias_hh_l0: Tensor

    def __init__(
        self, layer: Recurrent, features: int, last: bool, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__()
        self.layer, self.last = layer, last
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
        # what the input adds is one product for all steps
        given = F.linear(x.transpose(0, 1), self.weight_ih_l0, self.bias_ih_l0).unbind(0)
        states = list(self._states(given, x.new_zeros(len(x), self.layer.units)))
        return (torch.stack(states[-1:] if self.last else states, 1),)

    def _states(self, given: tuple[Tensor, ...], h: Tensor) -> Iterator[Tensor]:
        recurrent, c = self.weight_hh_l0.t(), h
        for x in given:
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
    """One or two directions through all steps, and what the layer returns of them.

    Of padded sequences the backward direction is a run of its own over rows that are reversed within their
    lengths; else torch's kernel does both directions at once.
    """

    def __init__(
        self, node: Node, layer: Recurrent, unrolled: bool, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__()
        self.dtype = dtype
        self.sequence = layer.returns == "sequence"
        self.paired = layer.bidirectional and not unrolled and not node.masked
        last = not self.sequence and not node.masked

        def run() -> nn.Module:
            features = node.in_shape[-1]
            if unrolled:
                return Unrolled(layer, features, last, dtype, device)
            return _of_torch(layer, features, self.paired, dtype, device)

        self.onward = run()
        self.backward_run = run() if layer.bidirectional and not self.paired else None

    def forward(self, x: Tensor, padding: Padding | None) -> Tensor:
        if x.dtype != self.dtype:
            # bfloat16, in mixed precision, of which torch's own modules want to be given nothing
            x = x.to(self.dtype)
        states: Tensor = self.onward(x)[0]
        if self.paired:
            onward, back = states.chunk(2, -1)
            return states if self.sequence else torch.cat((onward[:, -1], back[:, 0]), -1)
        if self.backward_run is None:
            return states if self.sequence else _last(states, padding)
        back = self.backward_run(_reversed(x, padding))[0]
        if self.sequence:
            return torch.cat((states, _reversed(back, padding)), -1)
        return torch.cat((_last(states, padding), _last(back, padding)), -1)


def recurrent(
    node: Node, layer: Recurrent, unrolled: bool, dtype: torch.dtype, device: torch.device
) -> BuiltLayer:
    """torch has (out, in), its GRU the gates r, z, n, and its other cells a second bias, here always zero."""
    made = RecurrentLayer(node, layer, unrolled, dtype, device)
    bound = _weights(node, layer, made.onward, "", "_l0")
    if layer.bidirectional:
        holder = made.onward if made.backward_run is None else made.backward_run
        bound += _weights(node, layer, holder, "backward_", "_l0_reverse" if made.paired else "_l0")
    return BuiltLayer(made, bound)


def _of_torch(
    layer: Recurrent, features: int, paired: bool, dtype: torch.dtype, device: torch.device
) -> nn.RNNBase:
    kind = {SimpleRNN: nn.RNN, LSTM: nn.LSTM, GRU: nn.GRU}[type(layer)]
    made: nn.RNNBase = kind(
        features, layer.units, batch_first=True, bidirectional=paired, dtype=dtype, device=device
    )
    if not isinstance(layer, GRU):
        for name, parameter in made.named_parameters():
            if name.startswith("bias_hh"):
                parameter.requires_grad_(False).zero_()
    return made


def _weights(
    node: Node, layer: Recurrent, holder: nn.Module, prefix: str, suffix: str
) -> tuple[WeightBinding, ...]:
    names = node.weight_names()
    gates: Layout = _swap_first_two if isinstance(layer, GRU) else as_is

    def native(kernel: Tensor) -> Tensor:
        return gates(kernel.t())

    def canonical(weight: Tensor) -> Tensor:
        return gates(weight).t()

    def held(name: str) -> Tensor:
        tensor: Tensor = getattr(holder, name + suffix)
        return tensor

    kernel, recurrent_kernel, bias = (names[prefix + name] for name in ("kernel", "recurrent_kernel", "bias"))
    kernels = (
        bind(kernel, held("weight_ih"), native, canonical),
        bind(recurrent_kernel, held("weight_hh"), native, canonical),
    )
    if not isinstance(layer, GRU):
        return (*kernels, bind(bias, held("bias_ih")))

    def both(tensors: Sequence[Tensor]) -> Tensor:
        return torch.stack([gates(tensor) for tensor in tensors])

    def write(tensors: Sequence[Tensor], value: Tensor) -> None:
        for tensor, part in zip(tensors, value, strict=True):
            tensor.copy_(gates(part))

    return (*kernels, WeightBinding(bias, (held("bias_ih"), held("bias_hh")), both, write))


def _swap_first_two(gates: Tensor) -> Tensor:
    """The rows of a GRU's gates from z, r, n to r, z, n, and back."""
    first, second, third = gates.chunk(3)
    return torch.cat((second, first, third))


def _last(states: Tensor, padding: Padding | None) -> Tensor:
    """The state at the last valid step, `[batch, units]`."""
    if padding is None:
        return states[:, -1]
    index = (padding.lengths - 1).view(-1, 1, 1).expand(-1, 1, states.shape[-1])
    return states.gather(1, index).squeeze(1)


def _reversed(x: Tensor, padding: Padding | None) -> Tensor:
    """Each row's valid steps in reverse; padding stays where it is."""
    if padding is None:
        return x.flip(1)
    step = torch.arange(x.shape[1], device=x.device)
    index = torch.where(padding.valid, padding.lengths.unsqueeze(1) - 1 - step, step)
    return x.gather(1, index.unsqueeze(-1).expand_as(x))
