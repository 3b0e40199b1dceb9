"""The compiled programs of a worker, by plan: runs that differ only in numbers share one."""

from __future__ import annotations

from harness.core.adapter import Adapter, Plan, Program

MAX_PROGRAMS = 32


class Programs:
    """The programs of a worker, by plan; the least recently used one is evicted first."""

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter
        self._programs: dict[Plan, Program] = {}

    def get(self, plan: Plan) -> tuple[Program, bool]:
        """The program of a plan, and whether it had to be built."""
        program = self._programs.pop(plan, None)
        new = program is None
        if program is None:
            if len(self._programs) >= MAX_PROGRAMS:
                del self._programs[next(iter(self._programs))]
            program = self.adapter.build(plan)
        self._programs[plan] = program
        return program, new

    def drop_last(self) -> None:
        """Forget the program used last: an exception may have left it in an undefined state."""
        if self._programs:
            self._programs.popitem()
