"""Dates as written to files.

Certificates and machine measurements record the day of their creation. It is a UTC date, so that files from
machines in different time zones compare.
"""

from __future__ import annotations

import datetime


def today() -> str:
    """Return the current date in UTC, in ISO format (`2026-12-01`)."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()
