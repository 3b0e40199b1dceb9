"""Which run a name refers to, where a command or a configuration key takes one."""

from __future__ import annotations

from pathlib import Path

from harness.core.runs.run_folder import RunFolder, runs
from harness.core.validation import ConfigError, Mistake, nearest

SHOWN = 8  # run ids in a message


def find_run(results_dir: Path, name: str, key: str) -> RunFolder:
    """The run with this id, the only one whose id starts with it, or the one that finished `last`.

    Raises ConfigError, about `key`, if no run or several runs match.
    """
    folders = {folder.run_id: folder for folder in runs(results_dir)}
    if not folders:
        raise ConfigError([Mistake(key, f"there are no runs in {str(results_dir / 'runs')!r}")])
    if name == "last":
        finished = [folder for folder in folders.values() if folder.status() == "finished"]
        if not finished:
            raise ConfigError([Mistake(key, "no run has finished")])
        return max(finished, key=lambda folder: (folder.path / "result.json").stat().st_mtime_ns)
    matches = [run_id for run_id in folders if name and run_id.startswith(name)]
    if len(matches) == 1 or name in matches:
        return folders[name if name in matches else matches[0]]
    if matches:
        raise ConfigError([Mistake(key, f"{name!r} begins {len(matches)} of them", ", ".join(matches))])
    # prefixes of the name's length, so that a typo in a prefix gets a suggestion too
    prefixes = {run_id[: len(name)]: run_id for run_id in folders}
    more = f" and {len(folders) - SHOWN} more" if len(folders) > SHOWN else ""
    examples = ", ".join(list(folders)[:SHOWN]) + more
    suggestion = prefixes.get(nearest(name, prefixes), "")
    raise ConfigError([Mistake(key, f"no run has the id {name!r}", f"{examples}; or last", suggestion)])
