"""The run id: a hash of what determines the result and nothing else."""

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
"""Keys that change no number of a result."""


def identity(
    config: RunConfig, versions: Mapping[str, str], fingerprint: str, source: str | None = None
) -> str:
    """The run id: 16 hex digits of a hash of what determines the result.

    `versions` are those of the distributions in the worker's interpreter, this project's own included;
    `fingerprint` is that of the data, which stands for the code and the packages that made it; `source` is
    the digest of what `init.from_run` left, whose id must be the whole one. Left out is what can't change a
    number: `NOT_IN_IDENTITY`.
    """
    plain = config.to_plain()
    for key in NOT_IN_IDENTITY:
        del plain[key]
    framework = plain["framework"]
    plain["framework"] = {key: framework[key] for key in ("name", "adapter", "backend", "xla")}
    plain["framework"]["env"] = config.framework.environment(config.execution)
    # the layers as they were unrolled: units [64, 64], and 64 with a depth of 2, are one network
    layers = [(placed.path, to_plain(placed.layer)) for placed in config.model.spec.layers]
    plain["model"] = {"name": config.model.name, "layers": layers}
    if config.init == InitConfig():
        del plain["init"]
    else:  # the frozen layers by whichever name they were called
        frozen = {path for name in config.init.freeze for path in config.model.spec.meant(name)}
        plain["init"]["freeze"] = sorted(frozen)
        plain["init"]["digest"] = source
    return digest({"config": plain, "versions": dict(versions), "data": fingerprint})
