"""Recurrent layer kinds. They take sequences `(steps, features)` and process all steps.

For padded sequences, the last state is that of the last valid step, and the backward direction starts there.
Outputs at padded steps are undefined and never used. This allows the frameworks' fused kernels, which do not
support lengths.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from harness.core.network.layer_base import Initialiser, Positive, TimeAxis, need_rank
from harness.core.network.parameters import Param, Shape

Returns = Literal["last", "sequence"]


@dataclass(frozen=True)
class _Recurrent:
    """The base of the recurrent kinds, which differ in `gates` (blocks of `units` columns) and in the
    bias."""

    time_axis: ClassVar[TimeAxis] = "kept"
    gates: ClassVar[int]
    units: Positive
    returns: Returns = "sequence"
    bidirectional: bool = False
    kernel_init: Initialiser = "glorot_uniform"

    @property
    def _bias(self) -> Param:
        return Param((self.gates * self.units,), "zeros")

    def out_shape(self, shape: Shape) -> Shape:
        need_rank(shape, 2, "sequences (steps, features); `to_sequence` makes one")
        width = self.units * (2 if self.bidirectional else 1)
        return (shape[0], width) if self.returns == "sequence" else (width,)

    def params(self, shape: Shape) -> dict[str, Param]:
        features, columns = shape[-1], self.gates * self.units
        params: dict[str, Param] = {}
        for direction in ("", "backward_") if self.bidirectional else ("",):
            # the fans of one gate: the columns of the others belong to other units
            kernel = Param((features, columns), self.kernel_init, features, self.units)
            recurrent = Param((self.units, columns), self.kernel_init, self.units, self.units)
            params[f"{direction}kernel"] = kernel
            params[f"{direction}recurrent_kernel"] = recurrent
            params[f"{direction}bias"] = self._bias
        return params

    def flops(self, shape: Shape) -> int:
        directions = 2 if self.bidirectional else 1
        return 2 * directions * shape[0] * (shape[-1] + self.units) * self.gates * self.units


@dataclass(frozen=True)
class SimpleRNN(_Recurrent):
    """h = tanh(x W + h U + b). Elman 1990. kernel `(in, h)`, recurrent_kernel `(h, h)`, bias `(h,)`."""

    kind: ClassVar[str] = "rnn"
    gates: ClassVar[int] = 1


@dataclass(frozen=True)
class LSTM(_Recurrent):
    """Hochreiter & Schmidhuber 1997 with forget gates (Gers et al. 2000).

    Blocks of columns in the order i, f, g, o: kernel `(in, 4h)`, recurrent_kernel `(h, 4h)`, one bias
    `(4h,)`, whose forget part is initialised to 1 (Jozefowicz et al. 2015).
    """

    kind: ClassVar[str] = "lstm"
    gates: ClassVar[int] = 4

    @property
    def _bias(self) -> Param:
        return Param((self.gates * self.units,), "forget_gate_ones")


@dataclass(frozen=True)
class GRU(_Recurrent):
    """Cho et al. 2014, with the reset gate after the product, as in cuDNN and both frameworks.

    Blocks of columns in the order z, r, n: kernel `(in, 3h)`, recurrent_kernel `(h, 3h)`, bias `(2, 3h)`: one
    of the input and one of the recurrence, separate because the reset gate scales the latter's n part.
    """

    kind: ClassVar[str] = "gru"
    gates: ClassVar[int] = 3

    @property
    def _bias(self) -> Param:
        return Param((2, self.gates * self.units), "zeros")
