"""The run id: a hash of everything that determines a run's result, and of nothing else.

Two requests with the same id would give the same numbers, so a finished run is never repeated, whatever its
study is called and wherever its results folder lies. Changing what is hashed here gives every run a new id
and thereby orphans existing results.
"""

from __future__ import annotations

from collections.abc import Mapping

from harness.core.config.init_section import InitConfig
from harness.core.config.run_config import RunConfig
from harness.core.storage.digest import digest
from harness.core.validation import to_plain

NOT_IN_IDENTITY = (
    *("study", "results_dir", "tracking", "force", "certify", "isolation", "timeout_s", "limit"),
    *("checkpoint", "workers", "pin", "timings", "search"),
)
"""Keys that cannot change a number of a result."""


def identity(
    config: RunConfig, versions: Mapping[str, str], fingerprint: str, source: str | None = None
) -> str:
    """Return the run id: 16 hex digits of a hash of everything that determines the result.

    `versions` are those of the distributions in the worker's interpreter, including this project.
    `fingerprint` is that of the data, and stands for the code and packages that prepared it. `source` is the
    digest of the files of the run `init.from_run`, which must be a full run id. Keys in `NOT_IN_IDENTITY` are
    left out.
    """
    plain = config.to_plain()
    for key in NOT_IN_IDENTITY:
        del plain[key]
    framework = plain["framework"]
    plain["framework"] = {key: framework[key] for key in ("name", "adapter", "backend", "xla")}
    plain["framework"]["env"] = config.framework.environment(config.execution)
    # the unrolled layers: units [64, 64], and 64 with a depth of 2, are the same network
    layers = [(entry.path, to_plain(entry.layer)) for entry in config.model.spec.layers]
    plain["model"] = {"name": config.model.name, "layers": layers}
    if config.init == InitConfig():
        del plain["init"]
    else:  # frozen layers by their paths, since a layer may be named in several ways
        frozen = {path for name in config.init.freeze for path in config.model.spec.paths_of(name)}
        plain["init"]["freeze"] = sorted(frozen)
        plain["init"]["digest"] = source
    return digest({"config": plain, "versions": dict(versions), "data": fingerprint})
