"""The five architectures in plain PyTorch, as in a script for one of them. They use no adapter.

They compute the models of conf/model/*.yaml with the same number of parameters, which every comparison
checks: the second bias of nn.RNN and nn.LSTM, which is redundant, stays at zero; the key of an attention has
no bias, which would not affect its softmax.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CLASSES = 10
UNITS = 64
WIDTH, HEADS, HIDDEN, BLOCKS = 64, 4, 128, 2


def network(model: str, shape: tuple[int, ...], unrolled: bool = False) -> nn.Module:
    """The network of an architecture for samples of `shape`; `unrolled`: recurrences step by step, as
    torch.compile needs them."""
    steps, features = shape
    match model:
        case "fnn":
            return nn.Sequential(
                nn.Flatten(),
                nn.Linear(steps * features, 64),
                nn.ReLU(),
                nn.Linear(64, 32),
                nn.ReLU(),
                nn.Linear(32, CLASSES),
            )
        case "cnn":
            return _cnn(steps, features)
        case "rnn" | "lstm":
            if unrolled:
                return Unrolled(features, 1 if model == "rnn" else 4)
            kind = nn.RNN if model == "rnn" else nn.LSTM
            return Recurrent(kind(features, UNITS, batch_first=True))
        case "transformer":
            return Transformer(steps, features)
        case _:
            raise ValueError(f"no network {model!r}")


def parameters(model: nn.Module) -> int:
    """Number of trained parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def _cnn(height: int, width: int) -> nn.Module:
    layers = nn.Sequential(
        nn.Unflatten(1, (1, height)),
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * (height // 2) * (width // 2), 128),
        nn.ReLU(),
        nn.Linear(128, CLASSES),
    )
    return layers.to(memory_format=torch.channels_last)


class Recurrent(nn.Module):
    """A recurrent layer of torch whose last state is the input of a dense layer."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.layer = layer
        self.output = nn.Linear(UNITS, CLASSES)
        layer.bias_hh_l0.requires_grad_(False).zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.layer(x)[0][:, -1])


class Unrolled(nn.Module):
    """The same network step by step. `gates`: 4 of an LSTM, 1 of a simple recurrent layer."""

    def __init__(self, features: int, gates: int) -> None:
        super().__init__()
        self.into = nn.Linear(features, gates * UNITS)
        self.recurrent = nn.Linear(UNITS, gates * UNITS, bias=False)
        self.output = nn.Linear(UNITS, CLASSES)
        self.gates = gates

    def forward(self, x: Tensor) -> Tensor:
        h = c = x.new_zeros(len(x), UNITS)
        for projected in self.into(x.transpose(0, 1)).unbind(0):
            z = torch.addmm(projected, h, self.recurrent.weight.t())
            if self.gates == 1:
                h = z.tanh()
            else:
                i, f, g, o = z.chunk(4, 1)
                c = f.sigmoid() * c + i.sigmoid() * g.tanh()
                h = o.sigmoid() * c.tanh()
        return self.output(h)


class Attention(nn.Module):
    """Self-attention by torch's fused kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.query_bias, self.value_bias = (nn.Parameter(torch.zeros(WIDTH)) for _ in range(2))
        self.register_buffer("key_bias", torch.zeros(WIDTH))
        self.output = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        batch, steps, _ = x.shape
        bias = torch.cat((self.query_bias, self.key_bias, self.value_bias))
        projected = F.linear(x, self.into.weight, bias).view(batch, steps, 3, HEADS, WIDTH // HEADS)
        query, key, value = projected.permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(query, key, value)
        return self.output(attended.transpose(1, 2).reshape(batch, steps, WIDTH))


class Block(nn.Module):
    """Attention and a feed-forward part, each after a normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.Sequential(nn.LayerNorm(WIDTH), Attention())
        layers = nn.Linear(WIDTH, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, WIDTH)
        self.forward_part = nn.Sequential(nn.LayerNorm(WIDTH), *layers)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        return x + self.forward_part(x)


class Transformer(nn.Module):
    """An encoder with learned positions, and the mean over the steps."""

    def __init__(self, steps: int, features: int) -> None:
        super().__init__()
        self.into = nn.Linear(features, WIDTH)
        self.positions = nn.Parameter(nn.init.normal_(torch.empty(steps, WIDTH), std=0.02))
        self.blocks = nn.Sequential(*(Block() for _ in range(BLOCKS)))
        self.norm = nn.LayerNorm(WIDTH)
        self.output = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.into(x) + self.positions)
        return self.output(self.norm(x).mean(1))
