"""Read a layer tree from YAML: the kinds, their numbers, and `repeat`, which is unrolled here.

In the body of a `repeat`, a list where a layer takes one value gives each copy its own: `units: [64, 32]` in
two copies of a dense layer is a tower. `last` is the body of the last copy, where that one differs: the last
of several recurrent layers returns one state. Nothing downstream knows of `repeat`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from harness.core.network.layers import Layer, Residual
from harness.core.validation import ConfigError, Mistake, Range, field_types, members, nearest, parse


@dataclass(frozen=True)
class Placed:
    """A layer at its place: `path` names its weights (`1.0.2`), `key` its line in the configuration.

    `name` is what the user calls it, if anything. `body` and `shortcut` are those of a residual block.
    `frozen`: its weights are not trained.
    """

    path: str
    key: str
    layer: Layer
    name: str = ""
    body: tuple[Placed, ...] = ()
    shortcut: tuple[Placed, ...] = ()
    frozen: bool = False


@dataclass(frozen=True)
class _Repeat:
    """`times` copies of `body`; without `times`, as many as the lists in the body have values."""

    body: tuple[Any, ...]
    times: Annotated[int, Range(min=0)] | None = None
    last: tuple[Any, ...] | None = None


def read_layers(tree: object, prefix: str, key: str, mistakes: list[Mistake]) -> list[Placed]:
    """Read one list of layers; `repeat` becomes its copies, with paths `<index>.<copy>.<index>`."""
    if not isinstance(tree, Sequence) or isinstance(tree, str) or not tree:
        mistakes.append(Mistake(key, "is not a list of layers"))
        return []
    placed: list[Placed] = []
    for index, raw in enumerate(tree):
        path, place = f"{prefix}{index}", f"{key}[{index}]"
        if isinstance(raw, Mapping) and raw.get("kind") == "repeat":
            placed += _read_repeat(raw, path, place, mistakes)
            continue
        try:
            placed.append(_read_layer(raw, path, place, mistakes))
        except ConfigError as error:
            mistakes.extend(error.mistakes)
    return placed


def _read_layer(raw: object, path: str, key: str, mistakes: list[Mistake]) -> Placed:
    kinds = members(Layer)
    kind = raw.get("kind") if isinstance(raw, Mapping) else raw
    if not isinstance(raw, Mapping) or not isinstance(kind, str) or kind not in kinds:
        allowed = (*kinds, "repeat")
        problem, suggestion = f"{kind!r} is not a layer kind", nearest(str(kind), allowed)
        raise ConfigError([Mistake(f"{key}.kind", problem, ", ".join(allowed), suggestion)])
    name = raw.get("name", "")
    if not isinstance(name, str):
        raise ConfigError([Mistake(f"{key}.name", f"{name!r} is not a text")])
    layer: Layer = parse(kinds[kind], {k: v for k, v in raw.items() if k != "name"}, key)
    if not isinstance(layer, Residual):
        return Placed(path, key, layer, name)
    body = read_layers(layer.body, f"{path}.body.", f"{key}.body", mistakes)
    shortcut: list[Placed] = []
    if layer.shortcut:
        shortcut = read_layers(layer.shortcut, f"{path}.shortcut.", f"{key}.shortcut", mistakes)
    return Placed(path, key, Residual((), ()), name, tuple(body), tuple(shortcut))


def _read_repeat(raw: Mapping[str, Any], path: str, key: str, mistakes: list[Mistake]) -> list[Placed]:
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
        problem = f"{times} copies are asked for, but a list in the body has {counts} values"
        mistakes.append(Mistake(f"{key}.times", problem, "one value a copy, or one for all"))
        return []
    placed: list[Placed] = []
    found: list[Mistake] = []
    for copy in range(times):
        is_last = copy == times - 1 and repeat.last is not None
        body, place = (repeat.last, "last") if is_last else (repeat.body, "body")
        placed += read_layers(_of_copy(body or (), copy), f"{path}.{copy}.", f"{key}.{place}", found)
    mistakes.extend(dict.fromkeys(found))  # a mistake in the body is one mistake, however many copies
    return placed


def _is_choice(kind: object, field: str, value: object) -> bool:
    """Whether a value of a layer in a `repeat` is a list with one value a copy."""
    layer = members(Layer).get(str(kind))
    if layer is None or not isinstance(value, list):
        return False
    return "tuple" not in str(field_types(layer).get(field))


def _lengths(body: Sequence[Any]) -> list[int]:
    """The lengths of all lists in a body that give each copy its own value, residual blocks included."""
    found: list[int] = []
    for raw in body:
        if isinstance(raw, Mapping) and raw.get("kind") != "repeat":
            for field, value in raw.items():
                if _is_choice(raw.get("kind"), field, value):
                    found.append(len(value))
                elif field in ("body", "shortcut") and isinstance(value, list):
                    found += _lengths(value)
    return found


def _of_copy(body: Sequence[Any], copy: int) -> list[Any]:
    """The body as copy number `copy` sees it, lists replaced by that copy's value."""
    result: list[Any] = []
    for raw in body:
        if isinstance(raw, Mapping) and raw.get("kind") != "repeat":
            chosen = dict(raw)
            for field, value in raw.items():
                if _is_choice(raw.get("kind"), field, value):
                    chosen[field] = value[copy]
                elif field in ("body", "shortcut") and isinstance(value, list):
                    chosen[field] = _of_copy(value, copy)
            result.append(chosen)
        else:
            result.append(raw)
    return result
