"""The section `init` of a configuration: what a run starts from, and which layers it freezes.

YAML sometimes reads names of layers and runs as numbers (the path `1.0`, a run id without letters), so the
raw section is normalised and checked before it is parsed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harness.core.network import ModelSpec
from harness.core.validation import ConfigError, Mistake


@dataclass(frozen=True)
class InitConfig:
    """The section `init`: where a run starts.

    `from_run` is the id of a finished run, a unique beginning of one, or `last`: the run starts from its
    weights. With `resume` it continues that training, with the optimizer's state, the dropout masks and the
    count of epochs. `freeze` names layers that are not trained.
    """

    from_run: str | None = None
    resume: bool = False
    freeze: tuple[str, ...] = ()


def numbers_to_names(init: Mapping[str, Any]) -> dict[str, Any]:
    """Return the raw section with numbers as strings: the path `0`, a run id that happens to have no
    letters."""

    def name(value: object) -> object:
        return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value

    freeze = init.get("freeze")
    names = {"freeze": [name(each) for each in freeze]} if isinstance(freeze, list | tuple) else {}
    return {**init, **names, **({"from_run": name(init["from_run"])} if "from_run" in init else {})}


def init_mistakes(init: object, spec: ModelSpec | None) -> tuple[Mistake, ...]:
    """Return the mistakes in the raw section; `spec` is the model's layer tree, None if it cannot be read."""
    if not isinstance(init, Mapping):
        return ()
    mistakes: list[Mistake] = []
    freeze = init.get("freeze")
    names = freeze if isinstance(freeze, list | tuple) else []
    # YAML has already turned 1.10 into 1.1, which is another layer
    for key, values, example in (("from_run", [init.get("from_run")], "12e4"), ("freeze", names, "1.10")):
        if any(isinstance(value, float) for value in values):
            problem = f"{', '.join(map(str, values))} is read as a number, not as it was written"
            value = f'"{example}"' if key == "from_run" else f'["{example}"]'
            advice = f"quotes within quotes: 'init.{key}={value}'"
            mistakes.append(Mistake(f"init.{key}", problem, advice))
    if init.get("resume") is True and init.get("from_run") is None:
        problem = "needs a run to resume, and init.from_run is not set"
        mistakes.append(Mistake("init.resume", problem, "init.from_run=<run id>"))
    if spec is not None:
        try:
            spec.freeze(str(name) for name in names if isinstance(name, str | int))
        except ConfigError as error:
            mistakes += error.mistakes
    return tuple(mistakes)
