"""Plain PyTorch, each execution as in a script written for it alone."""

from __future__ import annotations

import sys

import numpy as np
import torch
from torch import nn
from torch.func import functional_call, grad_and_value
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from tests.bench.networks_torch import network, parameters
from tests.bench.turns import Turns

BATCH = 32


def idiomatic(name: str, x: torch.Tensor, y: torch.Tensor, turns: Turns) -> None:
    """The tutorial's loop."""
    loader = DataLoader(TensorDataset(x, y), BATCH, shuffle=True, drop_last=True)
    model = _network(name, x, turns)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for turn in turns:
        turn.start()
        losses = []
        for inputs, targets in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(inputs), targets)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        turn.stop()
        turn.done(torch.stack(losses).mean().item())


def eager(name: str, x: torch.Tensor, y: torch.Tensor, turns: Turns) -> None:
    """Batches by index, fused Adam."""
    model = _network(name, x, turns)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    for turn in turns:
        order = _order(len(x))
        turn.start()
        losses = []
        for rows in order:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x[rows]), y[rows])
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        turn.stop()
        turn.done(torch.stack(losses).mean().item())


def compiled(name: str, x: torch.Tensor, y: torch.Tensor, turns: Turns) -> None:
    """Forward and backward as one compiled graph, fused Adam."""
    model = _network(name, x, turns, unrolled=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    trained = {key: parameter for key, parameter in model.named_parameters() if parameter.requires_grad}
    weights = {key: parameter.detach() for key, parameter in trained.items()}

    @torch.compile
    def gradient(
        weights: dict[str, torch.Tensor], rows: torch.Tensor
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        return grad_and_value(lambda w: F.cross_entropy(functional_call(model, w, (x[rows],)), y[rows]))(
            weights
        )

    for turn in turns:
        order = _order(len(x))
        turn.start()
        losses = []
        for rows in order:
            gradients, loss = gradient(weights, rows)
            for parameter, value in zip(trained.values(), gradients.values(), strict=True):
                parameter.grad = value
            optimizer.step()
            losses.append(loss)
        turn.stop()
        turn.done(torch.stack(losses).mean().item())


def compiled_forward(name: str, x: torch.Tensor, y: torch.Tensor, turns: Turns) -> None:
    """As in most scripts: a compiled model, `backward()` outside."""
    model = _network(name, x, turns, unrolled=True)
    fast = torch.compile(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    for turn in turns:
        order = _order(len(x))
        turn.start()
        losses = []
        for rows in order:
            optimizer.zero_grad()
            loss = F.cross_entropy(fast(x[rows]), y[rows])
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        turn.stop()
        turn.done(torch.stack(losses).mean().item())


def _network(name: str, x: torch.Tensor, turns: Turns, unrolled: bool = False) -> nn.Module:
    model = network(name, tuple(x.shape[1:]), unrolled)
    turns.parameters = parameters(model)
    return model


def _order(rows: int) -> torch.Tensor:
    return torch.randperm(rows)[: rows // BATCH * BATCH].view(-1, BATCH)


if __name__ == "__main__":
    name, execution, path = sys.argv[1:]
    torch.set_num_threads(1)
    data = np.load(path)
    x, y = torch.tensor(data["x.train"], dtype=torch.float32), torch.tensor(data["y.train"])
    globals()[execution](name, x, y, Turns())
