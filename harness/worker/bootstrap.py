"""The script that starts a worker, run by the interpreter in which the framework is installed.

That interpreter may differ from the shell's and have its own packages, so the shell's folders must not be put
on its path: only `harness` and `adapters` are imported from this project. The worker is pinned to its cores
here, because libraries start threads as soon as they are imported, and those threads keep their cores.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import json
import os
import sys
from pathlib import Path

ROOT = str(Path(__file__).resolve().parents[2])


class ProjectFinder(importlib.abc.MetaPathFinder):
    """Finds this project's two packages, and nothing else, in the folder that contains this one."""

    def find_spec(self, name, path=None, target=None):  # type: ignore[no-untyped-def]
        if path is None and name in ("harness", "adapters"):
            return importlib.machinery.PathFinder.find_spec(name, [ROOT])
        return None


if __name__ == "__main__":
    if cores := json.loads(sys.argv[1])["cores"]:
        os.sched_setaffinity(0, cores)
    sys.meta_path.insert(0, ProjectFinder())
    from harness.worker.serve import main

    main(sys.argv[1])
