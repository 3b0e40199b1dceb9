"""Read the command line's overrides before Hydra does, so that all mistakes come in one message.

Hydra stops at its first unknown key or choice. Here choices are held against the files that exist, and keys
are let through (`key=1` becomes `++key=1`) for the configuration's own check, which sees all of them and
knows what was probably meant.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, OverrideType
from hydra.errors import OverrideParseException

from harness.parse import Mistake, nearest

Groups = Mapping[str, frozenset[str]]


def find_groups(folders: Iterable[Path]) -> Groups:
    """The groups of some configuration folders and their choices: `{"model": {"fnn", ...}}`."""
    found: dict[str, set[str]] = {}
    for folder in folders:
        for path in folder.rglob("*.yaml"):
            group = path.parent.relative_to(folder).as_posix()
            if group != ".":
                found.setdefault(group, set()).add(path.stem)
    return {group: frozenset(choices) for group, choices in found.items()}


def check(overrides: Sequence[str], groups: Groups) -> tuple[list[str], list[Mistake]]:
    """The overrides as Hydra should see them, and what is wrong with the rest."""
    kept: list[str] = []
    mistakes: list[Mistake] = []
    parser = OverridesParser.create()
    for text in overrides:
        try:
            override = parser.parse_override(text)
        except OverrideParseException as error:
            problem = f"{text!r} can't be read: {str(error).splitlines()[0]}"
            mistakes.append(Mistake("", problem, "key=value, key=a,b,c or key=range(3)"))
            continue
        wrong = _wrong_choices(override, groups)
        mistakes += wrong
        if not wrong:
            kept.append(f"++{text}" if _is_value(override, groups) else text)
    return kept, mistakes


def _is_value(override: Override, groups: Groups) -> bool:
    """Whether it sets a plain key of ours: those get their check after composition."""
    key = override.key_or_group
    ours = key not in groups and not key.startswith("hydra") and "/" not in key
    return ours and override.type == OverrideType.CHANGE


def _wrong_choices(override: Override, groups: Groups) -> list[Mistake]:
    group = override.key_or_group
    # Hydra's own groups (hydra/launcher ...) have choices that lie in Hydra and its plugins
    if group not in groups or group.startswith("hydra") or override.type == OverrideType.DEL:
        return []
    known = sorted(groups[group])
    return [
        Mistake(group, f"{name!r} is not known", ", ".join(known), nearest(name, known))
        for name in _names(override)
        if name not in groups[group]
    ]


def _names(override: Override) -> list[str]:
    """The choices that an override names; a glob picks among those that exist, so it names none."""
    if override.is_sweep_override():
        if isinstance(override.value(), Glob):
            return []
        return [str(name) for name in override.sweep_string_iterator()]
    value = override.value()
    if value is None:
        return []
    return [str(name) for name in value] if isinstance(value, list) else [str(value)]
