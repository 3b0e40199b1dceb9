"""The programs that a worker has compiled, by plan: a run that differs in numbers only compiles nothing."""

from __future__ import annotations

from harness.core.adapter import Adapter, Plan, Program

MAX_PROGRAMS = 32


class Programs:
    """The programs that this worker has compiled, by plan; the longest unused goes first."""

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter
        self._kept: dict[Plan, Program] = {}

    def get(self, plan: Plan) -> tuple[Program, bool]:
        """The program of a plan, and whether it had to be built."""
        program = self._kept.pop(plan, None)
        new = program is None
        if program is None:
            if len(self._kept) >= MAX_PROGRAMS:
                del self._kept[next(iter(self._kept))]
            program = self.adapter.build(plan)
        self._kept[plan] = program
        return program, new

    def drop_last(self) -> None:
        """Forget the program used last: an exception may have left it half-way, in evaluation mode, say."""
        if self._kept:
            self._kept.popitem()
