"""Layers that slide a window over places, in torch's axis order: channels before height and width, or steps.

The walk in `model` sees to the order of axes. On images it is a matter of strides only: tensors lie in memory
as the canonical layout has them (torch's channels_last), where convolutions are faster as well: 8.8 against
10.3 ms a step for one of 32 filters on 32 images of 28 x 28, on a CPU.
"""

from __future__ import annotations

from typing import assert_never

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adapters.torch.weight_binding import BuiltLayer, Padding, bind
from harness.core.network import BatchNorm, Conv1D, Conv2D, GlobalPool, Node, Pool, Upsample


class Permute(nn.Module):
    """Another order of axes, as a view."""

    def __init__(self, *axes: int) -> None:
        super().__init__()
        self.axes = axes

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(self.axes)


def channels_first(rank: int) -> Permute:
    """From the canonical order to torch's; `rank` counts the axes of one sample."""
    return Permute(0, rank, *range(1, rank))


def channels_last(rank: int) -> Permute:
    """From torch's order to the canonical one."""
    return Permute(0, *range(2, rank + 1), 1)


class CausalConv1d(nn.Conv1d):
    """Padded with zeros at the front only, so that no output sees a later step."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(F.pad(input, (self.kernel_size[0] - 1, 0)))


class MeanOverPlaces(nn.Module):
    """The mean over some axes."""

    def __init__(self, axes: tuple[int, ...]) -> None:
        super().__init__()
        self.axes = axes

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(self.axes)


class LargestOfPlaces(nn.Module):
    """The largest value over some axes; its gradient is shared where several are equal."""

    def __init__(self, axes: tuple[int, ...]) -> None:
        super().__init__()
        self.axes = axes

    def forward(self, x: Tensor) -> Tensor:
        return x.amax(self.axes)


class MeanOfValid(nn.Module):
    """The mean over the valid steps of `[batch, steps, features]`."""

    def forward(self, x: Tensor, padding: Padding) -> Tensor:
        kept = x.masked_fill(~padding.valid.unsqueeze(-1), 0.0)
        return kept.sum(1) / padding.lengths.unsqueeze(-1)


class LargestOfValid(nn.Module):
    """The largest value over the valid steps of `[batch, steps, features]`."""

    def forward(self, x: Tensor, padding: Padding) -> Tensor:
        return x.masked_fill(~padding.valid.unsqueeze(-1), -torch.inf).amax(1)


class BiasedBatchNorm(nn.Module):
    """Batch normalisation over all axes but the second, whose running variance is the biased one.

    torch's own keeps the unbiased variance. The mean and the inverse root of the variance that its kernel
    normalised with come out of it as well, so the running statistics cost no second pass over the data.
    A frozen one is always in evaluation mode, as Keras has it: its statistics stay as they are. In mixed
    precision it computes in float32, as Keras' does too: compiled, torch's would give the mean in bfloat16.
    """

    moving_mean: Tensor
    moving_variance: Tensor

    def __init__(
        self, layer: BatchNorm, frozen: bool, channels: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__()
        self.epsilon, self.share, self.frozen = layer.epsilon, 1.0 - layer.momentum, frozen
        self.gamma = nn.Parameter(torch.ones(channels, dtype=dtype, device=device))
        self.beta = nn.Parameter(torch.zeros(channels, dtype=dtype, device=device))
        self.register_buffer("moving_mean", torch.zeros(channels, dtype=dtype, device=device))
        self.register_buffer("moving_variance", torch.ones(channels, dtype=dtype, device=device))

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.gamma.dtype)
        if self.frozen or not self.training:
            running = self.moving_mean, self.moving_variance
            return F.batch_norm(x, *running, self.gamma, self.beta, training=False, eps=self.epsilon)
        y, mean, inverse_root = torch.native_batch_norm(
            x, self.gamma, self.beta, None, None, True, 0.0, self.epsilon
        )
        with torch.no_grad():
            self.moving_mean.lerp_(mean, self.share)
            self.moving_variance.lerp_(inverse_root.pow(-2) - self.epsilon, self.share)
        result: Tensor = y
        return result


def convolution(node: Node, layer: Conv1D | Conv2D, dtype: torch.dtype, device: torch.device) -> BuiltLayer:
    """torch keeps a kernel as (filters, in, places), the canonical layout is (places, in, filters)."""
    names, size, channels = node.weight_names(), layer.kernel_size, node.in_shape[-1]
    # torch pads by itself in its kernel if it is the same on both sides, and by a copy where it isn't
    same: int | str = size // 2 if size % 2 else "same"
    padding = same if layer.padding == "same" else 0
    kind: type[nn.Conv1d] | type[nn.Conv2d]
    to_native: tuple[int, ...]
    to_canonical: tuple[int, ...]
    match layer:
        case Conv2D():
            kind, to_native, to_canonical = nn.Conv2d, (3, 2, 0, 1), (2, 3, 1, 0)
        case Conv1D():
            kind = CausalConv1d if layer.padding == "causal" else nn.Conv1d
            to_native = to_canonical = (2, 1, 0)
        case _:
            assert_never(layer)
    made = kind(
        channels, layer.filters, size, layer.strides, padding, bias=layer.use_bias, dtype=dtype, device=device
    )
    if isinstance(layer, Conv2D):
        # not `contiguous`: with one channel that is content with any strides, and inductor goes by them
        made.weight.data = made.weight.data.to(memory_format=torch.channels_last)
    kernel = bind(
        names["kernel"], made.weight, lambda w: w.permute(to_native), lambda w: w.permute(to_canonical)
    )
    bias = (bind(names["bias"], made.bias),) if made.bias is not None else ()
    return BuiltLayer(made, (kernel, *bias))


def pool(node: Node, layer: Pool) -> BuiltLayer:
    """Windows side by side; what is left at the end is dropped."""
    flat = len(node.in_shape) == 2
    match layer.mode:
        case "max":
            return BuiltLayer((nn.MaxPool1d if flat else nn.MaxPool2d)(layer.size))
        case "average":
            return BuiltLayer((nn.AvgPool1d if flat else nn.AvgPool2d)(layer.size))
        case _:
            assert_never(layer.mode)


def global_pool(node: Node, layer: GlobalPool, first: bool) -> BuiltLayer:
    """`first`: whether the channels are the first axis of a sample, else the last one."""
    rank = len(node.in_shape)
    axes = tuple(range(2, rank + 1)) if first else tuple(range(1, rank))
    match layer.mode:
        case "average":
            return BuiltLayer(MeanOfValid() if node.masked else MeanOverPlaces(axes))
        case "max":
            return BuiltLayer(LargestOfValid() if node.masked else LargestOfPlaces(axes))
        case _:
            assert_never(layer.mode)


def upsample(layer: Upsample) -> BuiltLayer:
    """`nearest` would find its source by a product in float32, which is off by one for some sizes."""
    return BuiltLayer(nn.Upsample(scale_factor=layer.size, mode="nearest-exact"))


def batch_norm(node: Node, layer: BatchNorm, dtype: torch.dtype, device: torch.device) -> BuiltLayer:
    """The running statistics are buffers: no optimizer sees them."""
    made = BiasedBatchNorm(layer, node.frozen, node.in_shape[-1], dtype, device)
    names = node.weight_names()
    return BuiltLayer(made, tuple(bind(names[name], getattr(made, name)) for name in names))
