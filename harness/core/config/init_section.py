"""The section `init` of a configuration: what a run starts from, and which layers it leaves as they are.

Names of layers and of runs look like numbers to YAML now and then (the path `1.0`, an id without letters), so
the raw section is looked at as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harness.core.network import ModelSpec
from harness.core.validation import ConfigError, Mistake


@dataclass(frozen=True)
class InitConfig:
    """The section `init`: where a run starts. `from_run` is the id of a finished run, the beginning of one
    that no other has, or `last`: its weights are taken in place of new ones. With `resume`, that training
    goes on: the optimizer's state, the dropout masks, and the epochs, which are counted on. `freeze` names
    layers that are not trained."""

    from_run: str | None = None
    resume: bool = False
    freeze: tuple[str, ...] = ()


def plain_section(init: Mapping[str, Any]) -> dict[str, Any]:
    """The section with texts for numbers: the path `0`, a run id that happens to have no letters."""

    def text(value: object) -> object:
        return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value

    freeze = init.get("freeze")
    names = {"freeze": [text(name) for name in freeze]} if isinstance(freeze, list | tuple) else {}
    return {**init, **names, **({"from_run": text(init["from_run"])} if "from_run" in init else {})}


def check(init: object, spec: ModelSpec | None) -> tuple[Mistake, ...]:
    """What is wrong with the raw section, of a model whose layers are known if they can be read."""
    if not isinstance(init, Mapping):
        return ()
    found: list[Mistake] = []
    freeze = init.get("freeze")
    names = freeze if isinstance(freeze, list | tuple) else []
    # YAML's 1.10 is 1.1 by now: another layer
    for key, values, example in (("from_run", [init.get("from_run")], "12e4"), ("freeze", names, "1.10")):
        if any(isinstance(value, float) for value in values):
            problem = f"{', '.join(map(str, values))} is read as a number, and no more as it was written"
            value = f'"{example}"' if key == "from_run" else f'["{example}"]'
            found.append(Mistake(f"init.{key}", problem, f"quotes within quotes: 'init.{key}={value}'"))
    if init.get("resume") is True and init.get("from_run") is None:
        found.append(
            Mistake("init.resume", "goes on from a run, and none is named", "init.from_run=<run id>")
        )
    if spec is not None:
        try:
            spec.freeze(str(name) for name in names if isinstance(name, str | int))
        except ConfigError as error:
            found += error.mistakes
    return tuple(found)
