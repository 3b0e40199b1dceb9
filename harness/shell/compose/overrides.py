"""Read the command line before Hydra does, so that all mistakes come in one message.

Hydra stops at its first unknown key or choice. Here choices are checked against the existing files, and keys
are passed on (`key=1` becomes `++key=1`) to the configuration's own check, which reports all of them with
suggestions.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import yaml
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, OverrideType
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness.core.validation import ConfigError, Mistake, nearest

Groups = Mapping[str, frozenset[str]]
Refusal = HydraException | OmegaConfBaseException | yaml.YAMLError
SYNTAX = "key=value, key=a,b,c or key=range(3)"
COMPLETIONS = tuple(
    f"{task}={shell}" for task in ("install", "uninstall", "query") for shell in ("bash", "fish", "zsh")
)
"""The arguments of Hydra's option for tab completion; `query` is used by shells themselves."""


def split(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str], list[str]]:
    """Hydra's options parsed, the overrides (anywhere among them), and all other arguments unchanged.

    Raises ConfigError for options that Hydra doesn't have or can't combine.
    """
    parser = get_args_parser()
    parser.exit_on_error = False
    try:
        options, unknown = parser.parse_known_intermixed_args(list(arguments))
    except argparse.ArgumentError as error:
        raise ConfigError([Mistake("", str(error))]) from None
    if unknown:
        raise ConfigError(unknown_options(unknown, sorted(parser._option_string_actions)))
    modes = {
        "--multirun": options.multirun,
        "--run": options.run,
        "--cfg": options.cfg,
        "--info": options.info,
    }
    chosen = [name for name, value in modes.items() if value]
    if len(chosen) > 1:
        raise ConfigError([Mistake("", f"{' and '.join(chosen)} can't be combined", "one of them")])
    if options.resolve and not options.cfg:
        raise ConfigError([Mistake("--resolve", "shows nothing by itself", "--cfg job --resolve")])
    overrides = [text for text in options.overrides if text]
    if options.shell_completion and (len(overrides) != 1 or overrides[0] not in COMPLETIONS):
        raise ConfigError([Mistake("--shell-completion", "needs one argument", ", ".join(COMPLETIONS))])
    return options, overrides, [text for text in arguments if text not in overrides]


def unknown_options(unknown: Sequence[str], available: Sequence[str]) -> list[Mistake]:
    """A mistake for each unknown option, with the nearest of the available ones."""
    long = [name for name in available if name.startswith("--")]
    options = [text for text in unknown if text.startswith("-")] or unknown
    return [Mistake(text, "unknown option", ", ".join(long), nearest(text, long)) for text in options]


def check_folder(own: Path, ours: Path) -> None:
    """Raise ConfigError if the user's folder does not exist, or has files that ours would hide."""
    if not own.is_dir():
        raise ConfigError([Mistake("--config-dir", f"{str(own)!r} is not a folder")])
    problem = "would be hidden by the file of the same name in evenbench"
    pairs = [(path, ours / path.relative_to(own)) for path in sorted(own.rglob("*.yaml"))]
    hidden = [path for path, twin in pairs if twin.exists() and twin.read_bytes() != path.read_bytes()]
    if hidden:
        raise ConfigError(Mistake(str(path), problem, "another name") for path in hidden)


def refusal(error: Refusal, folders: Iterable[Path]) -> list[Mistake]:
    """Hydra's error as mistakes; if a file can't be read, all such files are named."""
    broken: list[Mistake] = []
    unreadable = isinstance(error.__cause__ or error, OmegaConfBaseException | yaml.YAMLError)
    for path in (path for folder in folders if unreadable for path in sorted(folder.rglob("*.yaml"))):
        try:
            OmegaConf.load(path)
        except (yaml.YAMLError, OmegaConfBaseException, OSError) as reason:
            broken.append(Mistake(str(path), f"is not readable YAML: {_indented(reason)}"))
    if broken:
        return broken
    if ambiguous := re.match(r"Ambiguous value for argument '\+*(.+?)=(.*)'", str(error)):
        key, values = ambiguous.groups()
        allowed = f"-m (--multirun) for a sweep, or one list: {key}=[{values}]"
        return [Mistake(key, f"{values!r} are several values for a single run", allowed)]
    return [Mistake("", _indented(str(error).partition("Config search path")[0]))]


def _indented(text: object) -> str:
    lines = [line for line in str(text).splitlines() if line.strip()]
    return "\n      ".join(line.expandtabs(2) for line in lines)


def find_groups(folders: Iterable[Path]) -> Groups:
    """The groups of configuration folders with their choices: `{"model": {"fnn", ...}}`."""
    groups: dict[str, set[str]] = {}
    for folder in folders:
        for path in folder.rglob("*.yaml"):
            group = path.parent.relative_to(folder).as_posix()
            if group != ".":
                groups.setdefault(group, set()).add(path.stem)
    return {group: frozenset(choices) for group, choices in groups.items()}


def check(overrides: Sequence[str], groups: Groups) -> tuple[list[str], list[Mistake]]:
    """The valid overrides as Hydra gets them, and the mistakes in the others."""
    valid: list[str] = []
    mistakes: list[Mistake] = []
    parser = OverridesParser.create()
    for text in overrides:
        try:
            override = parser.parse_override(text)
        except HydraException as error:
            reason = str(error).splitlines()[0]
            problem = f"{text!r} can't be read: {reason}" if "=" in text else f"{text!r} is not key=value"
            mistakes.append(Mistake("", problem, SYNTAX))
            continue
        unknown = _unknown_choices(override, groups)
        mistakes += unknown
        if not unknown:
            valid.append(f"++{text}" if _is_value(override, groups) else text)
    return valid, mistakes


def _is_value(override: Override, groups: Groups) -> bool:
    """Whether it sets a plain key of our configuration, which is checked after composition."""
    key = override.key_or_group
    ours = key not in groups and not key.startswith("hydra") and "/" not in key
    return ours and override.type == OverrideType.CHANGE


def _unknown_choices(override: Override, groups: Groups) -> list[Mistake]:
    group = override.key_or_group
    # the choices of Hydra's own groups (hydra/launcher ...) are defined in Hydra and its plugins
    if group not in groups or group.startswith("hydra") or override.type == OverrideType.DEL:
        return []
    choices = sorted(groups[group])
    source = f"the override {override.input_line}"
    return [
        Mistake(group, f"{name!r} is not known", ", ".join(choices), nearest(name, choices), source)
        for name in _names(override)
        if name not in groups[group]
    ]


def _names(override: Override) -> list[str]:
    """The choices that an override names; none for a glob, which matches existing ones."""
    if override.is_sweep_override():
        if isinstance(override.value(), Glob):
            return []
        return [str(name) for name in override.sweep_string_iterator()]
    value = override.value()  # null is a name too, and unknown; `~group` removes a group
    return ["null" if name is None else str(name) for name in (value if isinstance(value, list) else [value])]
