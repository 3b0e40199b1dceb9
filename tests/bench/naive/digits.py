"""The data of the naive scripts."""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler


def splits() -> list[tuple[np.ndarray, np.ndarray]]:
    """Train, validation and test: 70, 10 and 20 % of the rows, scaled; x float32, y int64."""
    x, y = load_digits(return_X_y=True)
    x, x_test, y, y_test = train_test_split(x, y, test_size=0.2, stratify=y, random_state=0)
    x, x_val, y, y_val = train_test_split(x, y, test_size=0.125, stratify=y, random_state=0)
    scaler = StandardScaler().fit(x)
    parts = (x, y), (x_val, y_val), (x_test, y_test)
    return [(scaler.transform(a).astype(np.float32), b.astype(np.int64)) for a, b in parts]
