"""Which run a name means, where a command or a key takes one."""

from __future__ import annotations

from pathlib import Path

from harness.core.runs.run_folder import RunFolder, runs
from harness.core.validation import ConfigError, Mistake, nearest


def find_run(results_dir: Path, name: str, key: str) -> RunFolder:
    """The run with this id, or whose id begins so, or the one that finished `last`.

    Raises ConfigError, about `key`, where there is none or several.
    """
    found = {folder.run_id: folder for folder in runs(results_dir)}
    if not found:
        raise ConfigError([Mistake(key, f"there are no runs in {str(results_dir / 'runs')!r}")])
    if name == "last":
        finished = [folder for folder in found.values() if folder.status() == "finished"]
        if not finished:
            raise ConfigError([Mistake(key, "no run has finished")])
        return max(finished, key=lambda folder: (folder.path / "result.json").stat().st_mtime_ns)
    matches = [run_id for run_id in found if name and run_id.startswith(name)]
    if len(matches) == 1 or name in matches:
        return found[name if name in matches else matches[0]]
    if matches:
        raise ConfigError([Mistake(key, f"{name!r} begins {len(matches)} of them", ", ".join(matches))])
    # as long as what was given, so that a slip in a prefix is found too
    heads = {run_id[: len(name)]: run_id for run_id in found}
    few = ", ".join(list(found)[:8]) + (f" and {len(found) - 8} more" if len(found) > 8 else "")
    suggestion = heads.get(nearest(name, heads), "")
    raise ConfigError([Mistake(key, f"no run has the id {name!r}", f"{few}; or last", suggestion)])
