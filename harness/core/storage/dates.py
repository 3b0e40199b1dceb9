"""Dates as they are written to files."""

from __future__ import annotations

import datetime


def today() -> str:
    """The date of a certificate."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()
