"""The batches of an epoch: which rows of the training part each step trains on.

The harness draws the order with NumPy for a whole epoch and passes it to the framework, so all frameworks
train on the same batches by construction.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from harness.core import rng


def effective_batch(rows: int, batch_size: int) -> int:
    """Return the number of rows per batch: `batch_size`, limited to the number of rows in the data."""
    return min(rows, batch_size)


def batch_order(seed: int, epoch: int, rows: int, batch_size: int) -> NDArray[np.int32]:
    """Return the row numbers of each step of an epoch: int32 [steps, batch].

    Each epoch has a new permutation. Rows that do not fill a batch are dropped, different ones in every
    epoch: all batches then have one shape, so nothing is compiled twice, and the frameworks' different
    treatment of a smaller last batch cannot matter.
    """
    batch = effective_batch(rows, batch_size)
    steps = rows // batch
    order = rng.permutation(rows, "order", seed, epoch)[: steps * batch]
    return order.reshape(steps, batch).astype(np.int32)
