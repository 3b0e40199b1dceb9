"""Two processes that share a folder and nothing else, each telling the other in lines of JSON.

Each side appends to a file of its own and reads the other's from where it stopped, opened anew each time,
because that is what makes a network file system look again. A side that says nothing for long is gone: both
say `pulse` every few seconds, on a thread.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

POLL_S = 0.1
PULSE_S = 2.0
PULSE = {"event": "pulse"}


class SilenceError(Exception):
    """The other side has said nothing for too long."""


class Mailbox:
    """One side: it appends to `out` and reads `into`. `silence_s` is how long the other may say nothing; None
    while it need not be there yet. Any thread may send, one receives."""

    def __init__(self, into: Path, out: Path, silence_s: float | None) -> None:
        self.silence_s = silence_s
        self._into, self._out = into, out
        self._offset = 0
        self._heard = time.monotonic()
        self._found: list[dict[str, Any]] = []
        self._sending = threading.Lock()
        self._closed = threading.Event()
        threading.Thread(target=self._beat, daemon=True).start()

    def send(self, message: Mapping[str, Any]) -> None:
        """Say something, in one write."""
        with self._sending, self._out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(message) + "\n")

    def receive(self) -> dict[str, Any] | None:
        """What the other said next, None if nothing came by now; raises SilenceError."""
        if not self._found:
            self._read()
        return self._found.pop(0) if self._found else None

    def close(self) -> None:
        """Say nothing any more."""
        self._closed.set()

    def _read(self) -> None:
        now = time.monotonic()
        try:
            with self._into.open("rb") as file:
                file.seek(self._offset)
                new = file.read()
        except FileNotFoundError:
            new = b""
        whole = new[: new.rfind(b"\n") + 1]
        self._offset += len(whole)
        if whole:
            self._heard = now
        elif self.silence_s is not None and now - self._heard > self.silence_s:
            raise SilenceError(f"nothing was heard of it for {self.silence_s:g} s")
        self._found = [message for line in whole.splitlines() if (message := json.loads(line)) != PULSE]

    def _beat(self) -> None:
        while not self._closed.is_set():
            self.send(PULSE)
            self._closed.wait(PULSE_S)
