"""Which rows make up the batches of an epoch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from harness.core import rng


def effective_batch(rows: int, batch_size: int) -> int:
    """The rows of a batch in fact: more than there are can't be asked for."""
    return min(rows, batch_size)


def batch_order(seed: int, epoch: int, rows: int, batch_size: int) -> NDArray[np.int32]:
    """Which rows of the training part make up each step of an epoch: int32 [steps, batch].

    A new permutation each epoch. The rows that don't fill a batch are left out, which are others in every
    epoch: all batches then have one shape (nothing is compiled twice) and no framework's own way with a
    smaller last batch can matter.
    """
    batch = effective_batch(rows, batch_size)
    steps = rows // batch
    order = rng.permutation(rows, "order", seed, epoch)[: steps * batch]
    return order.reshape(steps, batch).astype(np.int32)
