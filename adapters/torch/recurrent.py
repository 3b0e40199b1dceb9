"""Recurrent layers: torch's fused ones, and the same unrolled for torch.compile, which takes no others.

Unrolled, a network of 28 steps compiles for 7 (simple), 16 (LSTM) or 27 (GRU) seconds of CPU time, in
proportion to the steps, and then runs at 0.5, 1.0 and 0.5 times the time of torch's own on a CPU. What else
was tried: leaving torch's own outside of the graph compiles in 1.5 s and is slower than not compiling at
all; torch's `scan` takes 50 times as long.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import assert_never

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adapters.torch.bound import Bound, Built, Layout, Padding, as_is, bind
from harness.spec import GRU, LSTM, Network, Node, SimpleRNN

Recurrent = SimpleRNN | LSTM | GRU

UNROLLED_STEPS = 64
"""The most steps, of all layers and directions together, that are unrolled: about a minute to compile."""


def steps(network: Network) -> int:
    """How many steps of recurrent cells one forward pass takes, one after the other."""
    cells = [node for node in network.layers() if isinstance(node.layer, SimpleRNN | LSTM | GRU)]
    return sum(node.in_shape[0] * (2 if getattr(node.layer, "bidirectional", False) else 1) for node in cells)


class Unrolled(nn.Module):
    """One direction of a recurrent layer, step by step, with the parameters of torch's own module.

    Gives the state at every step, or the last one only, `[batch, 1, units]`.
    """

    def __init__(self, layer: Recurrent, features: int, last: bool, **where: object) -> None:
        super().__init__()
        gates = {SimpleRNN: 1, LSTM: 4, GRU: 3}[type(layer)] * layer.units
        self.units, self.last = layer.units, last
        self._cell = {SimpleRNN: self._simple, LSTM: self._lstm, GRU: self._gru}[type(layer)]
        shapes = {"weight_ih_l0": (gates, features), "weight_hh_l0": (gates, layer.units), "bias_ih_l0": (gates,)}
        if isinstance(layer, GRU):
            shapes["bias_hh_l0"] = (gates,)
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.zeros(shape, **where)))  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> tuple[Tensor]:
        # what the input adds is one product for all steps
        given = F.linear(x.transpose(0, 1), self.weight_ih_l0, self.bias_ih_l0).unbind(0)  # type: ignore[arg-type]
        states = list(self._cell(given, x.new_zeros(len(x), self.units)))
        return (torch.stack(states[-1:] if self.last else states, 1),)

    def _simple(self, given: tuple[Tensor, ...], h: Tensor) -> Iterator[Tensor]:
        recurrent = self.weight_hh_l0.t()  # type: ignore[operator]
        for x in given:
            h = torch.addmm(x, h, recurrent).tanh()
            yield h

    def _lstm(self, given: tuple[Tensor, ...], h: Tensor) -> Iterator[Tensor]:
        recurrent, c = self.weight_hh_l0.t(), h  # type: ignore[operator]
        for x in given:
            i, f, g, o = torch.addmm(x, h, recurrent).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            yield h

    def _gru(self, given: tuple[Tensor, ...], h: Tensor) -> Iterator[Tensor]:
        recurrent, bias = self.weight_hh_l0.t(), self.bias_hh_l0  # type: ignore[operator]
        for x in given:
            of_x, of_h = x.chunk(3, 1), torch.addmm(bias, h, recurrent).chunk(3, 1)
            r, z = (of_x[0] + of_h[0]).sigmoid(), (of_x[1] + of_h[1]).sigmoid()
            n = (of_x[2] + r * of_h[2]).tanh()
            h = (1 - z) * n + z * h
            yield h
