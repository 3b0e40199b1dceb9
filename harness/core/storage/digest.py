"""Short names for values: what is equal has the same one, in every process and on every machine."""

from __future__ import annotations

import hashlib
import json


def digest(value: object, digits: int = 16) -> str:
    """The first hex digits of the SHA-256 of a value's JSON, in which the order of keys does not count."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:digits]
