"""Two processes that share only a folder and exchange JSON lines through it.

Each side appends to its own file and reads the other's from where it stopped. The file is reopened for each
read, because that makes a network file system look for new data. A side that is silent for too long counts as
gone, so both send a `pulse` every few seconds, on a thread.
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
    """The other side has been silent for too long."""


class Mailbox:
    """One side, which appends to `outbox` and reads `inbox`. Any thread may send; one thread receives.

    `silence_s` is how long the other side may be silent; None while it may not have started yet.
    """

    def __init__(self, inbox: Path, outbox: Path, silence_s: float | None) -> None:
        self.silence_s = silence_s
        self._inbox, self._outbox = inbox, outbox
        self._offset = 0
        self._last_heard = time.monotonic()
        self._messages: list[dict[str, Any]] = []
        self._send_lock = threading.Lock()
        self._closed = threading.Event()
        threading.Thread(target=self._send_pulses, daemon=True).start()

    def send(self, message: Mapping[str, Any]) -> None:
        """Send a message, in one write."""
        with self._send_lock, self._outbox.open("a", encoding="utf-8") as file:
            file.write(json.dumps(message) + "\n")

    def receive(self) -> dict[str, Any] | None:
        """The other side's next message, or None if there is none yet; raises SilenceError."""
        if not self._messages:
            self._read()
        return self._messages.pop(0) if self._messages else None

    def close(self) -> None:
        """Stop sending pulses."""
        self._closed.set()

    def _read(self) -> None:
        now = time.monotonic()
        try:
            with self._inbox.open("rb") as file:
                file.seek(self._offset)
                new = file.read()
        except FileNotFoundError:
            new = b""
        complete = new[: new.rfind(b"\n") + 1]
        self._offset += len(complete)
        if complete:
            self._last_heard = now
        elif self.silence_s is not None and now - self._last_heard > self.silence_s:
            raise SilenceError(f"no message for {self.silence_s:g} s")
        self._messages = [message for line in complete.splitlines() if (message := json.loads(line)) != PULSE]

    def _send_pulses(self) -> None:
        while not self._closed.is_set():
            self.send(PULSE)
            self._closed.wait(PULSE_S)
