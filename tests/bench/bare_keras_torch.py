"""Keras on torch, each execution as in a script written for it alone."""

from __future__ import annotations

import os
import sys

os.environ["KERAS_BACKEND"] = "torch"

import keras
import numpy as np
import torch
from torch.nn import functional as F

from tests.bench.bare_fit import arrays, idiomatic, order
from tests.bench.networks_keras import network, parameters
from tests.bench.turns import Turns

__all__ = ["eager", "idiomatic"]


def eager(name: str, x: np.ndarray, y: np.ndarray, turns: Turns) -> None:
    """The loop of Keras' guide to training loops in PyTorch, with batches by index."""
    model, optimizer = network(name, x.shape[1:]), keras.optimizers.Adam(1e-3)
    optimizer.build(model.trainable_weights)
    turns.parameters = parameters(model)
    x, y = torch.from_numpy(x), torch.from_numpy(y).to(torch.int64)
    for turn in turns:
        batches = torch.from_numpy(order(len(x)))
        turn.start()
        losses = []
        for rows in batches:
            loss = F.cross_entropy(model(x[rows], training=True), y[rows])
            model.zero_grad()
            loss.backward()
            weights = model.trainable_weights
            gradients = [weight.value.grad for weight in weights]
            with torch.no_grad():
                optimizer.apply(gradients, weights)
            losses.append(loss.detach())
        turn.stop()
        turn.done(torch.stack(losses).mean().item())


if __name__ == "__main__":
    torch.set_num_threads(1)
    name, execution, path = sys.argv[1:]
    globals()[execution](name, *arrays(path), Turns())
