"""Short hashes of values: equal values have the same one in every process and on every machine."""

from __future__ import annotations

import hashlib
import json


def digest(value: object, digits: int = 16) -> str:
    """Return the first hex digits of the SHA-256 of a value's JSON with sorted keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:digits]
