"""The forward pass of every layer kind in NumPy, float64, as specified by `harness/core/network`.

Written for readability, with one loop over steps. With `training`, BatchNorm uses the statistics of its batch
and stores the updated running statistics in `Pass.statistics`. Dropout is always off.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, assert_never

import numpy as np
from numpy.typing import NDArray

from harness.core.network import (
    GRU,
    LSTM,
    Activation,
    AnyNode,
    BatchNorm,
    Conv1D,
    Conv2D,
    Dense,
    Dropout,
    Embedding,
    Flatten,
    GlobalPool,
    LayerNorm,
    Network,
    Node,
    Pool,
    Positions,
    Reshape,
    ResidualNode,
    SelfAttention,
    SimpleRNN,
    Upsample,
    sinusoids,
)
from tests.support.numpy_training import activate, sigmoid

Array = NDArray[Any]
Recurrent = SimpleRNN | LSTM | GRU


@dataclass
class Pass:
    """One forward pass: canonical `weights`, and `lengths`, the valid steps of each row where they differ."""

    weights: dict[str, Array]
    lengths: Array | None = None
    training: bool = False
    statistics: dict[str, Array] = field(default_factory=dict)

    def network(self, network: Network, x: Array) -> Array:
        """The outputs `[rows, outputs]`."""
        return self.chain(network.nodes, x)

    def chain(self, nodes: tuple[AnyNode, ...], x: Array) -> Array:
        for node in nodes:
            if isinstance(node, ResidualNode):
                x = self.chain(node.shortcut, x) + self.chain(node.body, x)
            else:
                x = self.layer(node, x)
                assert x.shape[1:] == node.out_shape, node
        return x

    def layer(self, node: Node, x: Array) -> Array:
        w = {name: self.weights[full] for name, full in node.weight_names().items()}
        layer = node.layer
        valid = self._valid(node, x)
        match layer:
            case Dense():
                return x @ w["kernel"] + w.get("bias", 0.0)
            case Activation():
                return activate(layer, x)[0]
            case Dropout():
                return x
            case Flatten():
                return np.where(_broadcast(valid, x), x, 0.0).reshape(len(x), -1)
            case Reshape():
                return x.reshape(len(x), *node.out_shape)
            case Conv2D() | Conv1D():
                return convolve(layer, w, x)
            case Pool(mode=mode, size=size):
                windows = split_windows(x, size)
                axes = tuple(range(2, windows.ndim - 1, 2))
                return windows.max(axes) if mode == "max" else windows.mean(axes)
            case GlobalPool(mode=mode):
                return np.stack([global_pool(mode, row[keep]) for row, keep in zip(x, valid, strict=True)])
            case Upsample(size=size):
                for axis in range(1, x.ndim - 1):
                    x = np.repeat(x, size, axis)
                return x
            case SimpleRNN() | LSTM() | GRU():
                return np.stack(
                    [recur(layer, w, row, keep.sum()) for row, keep in zip(x, valid, strict=True)]
                )
            case Embedding():
                return w["table"][x.astype(np.int64)]
            case Positions(encoding=encoding):
                return x + (w["table"] if encoding == "learned" else np.array(sinusoids(node.in_shape)))
            case SelfAttention():
                return np.stack([attend(layer, w, row, keep) for row, keep in zip(x, valid, strict=True)])
            case LayerNorm(epsilon=epsilon):
                mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
                return (x - mean) / np.sqrt(variance + epsilon) * w["gamma"] + w["beta"]
            case BatchNorm():
                return self._batch_norm(node, layer, w, x)
            case _:
                assert_never(layer)

    def _valid(self, node: Node, x: Array) -> Array:
        """Mask of the valid steps (or rows of an image, or entries of a vector), bool `[rows, first
        axis]`."""
        if not node.masked:
            return np.ones(x.shape[:2], dtype=bool)
        assert self.lengths is not None
        return np.arange(x.shape[1]) < self.lengths[:, None]

    def _batch_norm(self, node: Node, layer: BatchNorm, w: dict[str, Array], x: Array) -> Array:
        mean, variance = w["moving_mean"], w["moving_variance"]
        if self.training:
            axes = tuple(range(x.ndim - 1))
            names, m = node.weight_names(), layer.momentum
            self.statistics[names["moving_mean"]] = m * mean + (1 - m) * x.mean(axes)
            self.statistics[names["moving_variance"]] = m * variance + (1 - m) * x.var(axes)
            mean, variance = x.mean(axes), x.var(axes)
        return (x - mean) / np.sqrt(variance + layer.epsilon) * w["gamma"] + w["beta"]


def _broadcast(valid: Array, x: Array) -> Array:
    return valid.reshape(*valid.shape, *(1,) * (x.ndim - 2))


def global_pool(mode: str, row: Array) -> Array:
    """Pool over all positions of one sample."""
    positions = row.reshape(-1, row.shape[-1])
    return positions.max(0) if mode == "max" else positions.mean(0)


def split_windows(x: Array, size: int) -> Array:
    """Split each spatial axis into (window, position within the window); drop an incomplete window at the
    end."""
    counts = [n // size for n in x.shape[1:-1]]
    x = x[(slice(None), *(slice(n * size) for n in counts))]
    return x.reshape(len(x), *(part for n in counts for part in (n, size)), x.shape[-1])


def convolve(layer: Conv1D | Conv2D, w: dict[str, Array], x: Array) -> Array:
    """Convolve window by window."""
    size, axes = layer.kernel_size, x.ndim - 2
    front = {"valid": 0, "same": (size - 1) // 2, "causal": size - 1}[layer.padding]
    back = size - 1 - front if layer.padding != "valid" else 0
    x = np.pad(x, [(0, 0), *[(front, back)] * axes, (0, 0)])
    windows = np.lib.stride_tricks.sliding_window_view(x, (size,) * axes, axis=tuple(range(1, axes + 1)))
    windows = windows[(slice(None), *[slice(None, None, layer.strides)] * axes)]
    # (rows, positions, channels, window) times (window, channels, filters)
    kernel = np.moveaxis(w["kernel"], -2, 0)
    return np.tensordot(windows, kernel, axes=axes + 1) + w.get("bias", 0.0)


def recur(layer: Recurrent, w: dict[str, Array], row: Array, length: int) -> Array:
    """The states of one sample `[steps, features]`; those at padded steps are zeros."""
    outputs = []
    for direction in ("", "backward_") if layer.bidirectional else ("",):
        own = {name: w[direction + name] for name in ("kernel", "recurrent_kernel", "bias")}
        steps = row[:length] if not direction else row[:length][::-1]
        h, c, states = np.zeros(layer.units), np.zeros(layer.units), np.zeros((len(row), layer.units))
        for t, x in enumerate(steps):
            h, c = cell(layer, own, x, h, c)
            states[t] = h
        if direction:
            states[:length] = states[:length][::-1].copy()
        outputs.append(h if layer.returns == "last" else states)
    return np.concatenate(outputs, -1)


def cell(layer: Recurrent, w: dict[str, Array], x: Array, h: Array, c: Array) -> tuple[Array, Array]:
    """The hidden and cell states after one step."""
    match layer:
        case SimpleRNN():
            return np.tanh(x @ w["kernel"] + h @ w["recurrent_kernel"] + w["bias"]), c
        case LSTM():
            i, f, g, o = np.split(x @ w["kernel"] + h @ w["recurrent_kernel"] + w["bias"], 4)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            return sigmoid(o) * np.tanh(c), c
        case GRU():
            xz, xr, xn = np.split(x @ w["kernel"] + w["bias"][0], 3)
            hz, hr, hn = np.split(h @ w["recurrent_kernel"] + w["bias"][1], 3)
            z, n = sigmoid(xz + hz), np.tanh(xn + sigmoid(xr + hr) * hn)
            return z * h + (1 - z) * n, c
        case _:
            assert_never(layer)


def attend(layer: SelfAttention, w: dict[str, Array], row: Array, keep: Array) -> Array:
    """Attention over one sample, masking padded steps, and later ones if causal."""
    width = w["query_kernel"].shape[-1]
    query = np.einsum("td,dhk->htk", row, w["query_kernel"]) + w["query_bias"][:, None]
    key = np.einsum("td,dhk->htk", row, w["key_kernel"])
    value = np.einsum("td,dhk->htk", row, w["value_kernel"]) + w["value_bias"][:, None]
    score = np.einsum("htk,hsk->hts", query, key) / np.sqrt(width)
    visible = np.broadcast_to(keep, score.shape)
    if layer.causal:
        visible = visible & np.tri(len(row), dtype=bool)
    score = np.where(visible, score, -np.inf)
    share = np.exp(score - score.max(-1, keepdims=True))
    share /= share.sum(-1, keepdims=True)
    return np.einsum("hts,hsk,hkd->td", share, value, w["output_kernel"]) + w["output_bias"]


def forward(
    network: Network,
    weights: dict[str, Array],
    x: Array,
    lengths: Array | None = None,
    training: bool = False,
) -> tuple[Array, dict[str, Array]]:
    """Outputs `[rows, outputs]`, and the running statistics if in training mode."""
    run = Pass({name: w.astype(np.float64) for name, w in weights.items()}, lengths, training)
    return run.network(network, x), run.statistics
