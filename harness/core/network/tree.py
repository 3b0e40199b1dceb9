"""Parse a layer tree from YAML, and unroll `repeat`, which no other module knows.

In the body of a `repeat`, a list in place of a single value gives each copy its own value: `units: [64, 32]`
in two copies of a dense layer is a tower. `last` is the body of the last copy if that one differs: the last
of several recurrent layers returns only its last state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from harness.core.network.layers import Layer, Residual
from harness.core.validation import ConfigError, Mistake, Range, field_types, members, nearest, parse


@dataclass(frozen=True)
class LayerEntry:
    """A layer of a tree: `path` names its weights (`1.0.2`), `key` its entry in the configuration.

    `name`: the user's name for it, or "". `body` and `shortcut`: those of a residual block. `frozen`: its
    weights are not trained.
    """

    path: str
    key: str
    layer: Layer
    name: str = ""
    body: tuple[LayerEntry, ...] = ()
    shortcut: tuple[LayerEntry, ...] = ()
    frozen: bool = False


@dataclass(frozen=True)
class _Repeat:
    """`times` copies of `body`; without `times`, one for each value of the lists in the body."""

    body: tuple[Any, ...]
    times: Annotated[int, Range(min=0)] | None = None
    last: tuple[Any, ...] | None = None


def read_layers(tree: object, prefix: str, key: str, mistakes: list[Mistake]) -> list[LayerEntry]:
    """Parse one list of layers; a `repeat` becomes its copies, with paths `<index>.<copy>.<index>`."""
    if not isinstance(tree, Sequence) or isinstance(tree, str) or not tree:
        mistakes.append(Mistake(key, "is not a list of layers"))
        return []
    entries: list[LayerEntry] = []
    for index, raw in enumerate(tree):
        path, entry_key = f"{prefix}{index}", f"{key}[{index}]"
        if isinstance(raw, Mapping) and raw.get("kind") == "repeat":
            entries += _read_repeat(raw, path, entry_key, mistakes)
            continue
        try:
            entries.append(_read_layer(raw, path, entry_key, mistakes))
        except ConfigError as error:
            mistakes.extend(error.mistakes)
    return entries


def _read_layer(raw: object, path: str, key: str, mistakes: list[Mistake]) -> LayerEntry:
    kinds = members(Layer)
    kind = raw.get("kind") if isinstance(raw, Mapping) else raw
    if not isinstance(raw, Mapping) or not isinstance(kind, str) or kind not in kinds:
        allowed = (*kinds, "repeat")
        problem, suggestion = f"{kind!r} is not a layer kind", nearest(str(kind), allowed)
        raise ConfigError([Mistake(f"{key}.kind", problem, ", ".join(allowed), suggestion)])
    name = raw.get("name", "")
    if not isinstance(name, str):
        raise ConfigError([Mistake(f"{key}.name", f"{name!r} is not a string")])
    layer: Layer = parse(kinds[kind], {k: v for k, v in raw.items() if k != "name"}, key)
    if not isinstance(layer, Residual):
        return LayerEntry(path, key, layer, name)
    body = read_layers(layer.body, f"{path}.body.", f"{key}.body", mistakes)
    shortcut: list[LayerEntry] = []
    if layer.shortcut:
        shortcut = read_layers(layer.shortcut, f"{path}.shortcut.", f"{key}.shortcut", mistakes)
    return LayerEntry(path, key, Residual((), ()), name, tuple(body), tuple(shortcut))


def _read_repeat(raw: Mapping[str, Any], path: str, key: str, mistakes: list[Mistake]) -> list[LayerEntry]:
    try:
        repeat = parse(_Repeat, {k: v for k, v in raw.items() if k != "kind"}, key)
    except ConfigError as error:
        mistakes.extend(error.mistakes)
        return []
    lengths = set(_lengths(repeat.body)) | set(_lengths(repeat.last or ()))
    times = repeat.times if repeat.times is not None else max(lengths, default=None)
    if times is None:
        mistakes.append(Mistake(f"{key}.times", "is missing: how many copies?", "a whole number"))
        return []
    if lengths - {times}:
        counts = ", ".join(map(str, sorted(lengths)))
        problem = f"{times} copies, but a list in the body has {counts} values"
        mistakes.append(Mistake(f"{key}.times", problem, "one value a copy, or one for all"))
        return []
    entries: list[LayerEntry] = []
    of_copies: list[Mistake] = []
    for copy in range(times):
        is_last = copy == times - 1 and repeat.last is not None
        body, section = (repeat.last, "last") if is_last else (repeat.body, "body")
        entries += read_layers(_of_copy(body or (), copy), f"{path}.{copy}.", f"{key}.{section}", of_copies)
    mistakes.extend(dict.fromkeys(of_copies))  # a mistake in the body counts once, however many copies
    return entries


def _is_choice(kind: object, field: str, value: object) -> bool:
    """Return whether a value of a layer in a `repeat` is a list with one value per copy."""
    layer = members(Layer).get(str(kind))
    if layer is None or not isinstance(value, list):
        return False
    return "tuple" not in str(field_types(layer).get(field))


def _lengths(body: Sequence[Any]) -> list[int]:
    """Return the lengths of all lists in a body with one value per copy, including residual blocks."""
    lengths: list[int] = []
    for raw in body:
        if isinstance(raw, Mapping) and raw.get("kind") != "repeat":
            for field, value in raw.items():
                if _is_choice(raw.get("kind"), field, value):
                    lengths.append(len(value))
                elif field in ("body", "shortcut") and isinstance(value, list):
                    lengths += _lengths(value)
    return lengths


def _of_copy(body: Sequence[Any], copy: int) -> list[Any]:
    """Return the body for copy number `copy`, with lists replaced by that copy's value."""
    layers: list[Any] = []
    for raw in body:
        if isinstance(raw, Mapping) and raw.get("kind") != "repeat":
            layer = dict(raw)
            for field, value in raw.items():
                if _is_choice(raw.get("kind"), field, value):
                    layer[field] = value[copy]
                elif field in ("body", "shortcut") and isinstance(value, list):
                    layer[field] = _of_copy(value, copy)
            layers.append(layer)
        else:
            layers.append(raw)
    return layers
