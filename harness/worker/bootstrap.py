"""The first line of a worker's life, run as a script by whichever interpreter the framework lives in.

That interpreter may be another one than the shell's, with its own packages, so the shell's folders must not
get onto its path as a whole: only `harness` and `adapters` are found in the place where this file lies.
Cores are given here too: libraries start threads as soon as they are imported, which keep the cores they had.
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
    """Finds this project's two packages, and nothing else, beside this file."""

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
