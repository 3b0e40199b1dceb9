"""Read a layer tree from YAML: the kinds, their numbers, and `repeat`, which is unrolled here.

In the body of a `repeat`, a list where a layer takes one value gives each copy its own: `units: [64, 32]` in
two copies of a dense layer is a tower. Nothing downstream knows of `repeat`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from harness.parse import ConfigError, Mistake, Range, field_types, members, nearest, parse
from harness.spec.layers import Layer


@dataclass(frozen=True)
class Placed:
    """A layer at its place: `path` names its weights (`1.0.2`), `key` its line in the configuration."""

    path: str
    key: str
    layer: Layer


@dataclass(frozen=True)
class _Repeat:
    """`times` copies of `body`; without `times`, as many as the lists in the body have values."""

    times: Annotated[int, Range(min=0)] | None
    body: tuple[Any, ...]


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
            placed.append(Placed(path, place, _read_layer(raw, place)))
        except ConfigError as error:
            mistakes.extend(error.mistakes)
    return placed


def _read_layer(raw: object, key: str) -> Layer:
    kinds = members(Layer)
    kind = raw.get("kind") if isinstance(raw, Mapping) else raw
    if not isinstance(raw, Mapping) or not isinstance(kind, str) or kind not in kinds:
        allowed = (*kinds, "repeat")
        problem, suggestion = f"{kind!r} is not a layer kind", nearest(str(kind), allowed)
        raise ConfigError([Mistake(f"{key}.kind", problem, ", ".join(allowed), suggestion)])
    layer: Layer = parse(kinds[kind], raw, key)
    return layer


def _read_repeat(raw: Mapping[str, Any], path: str, key: str, mistakes: list[Mistake]) -> list[Placed]:
    try:
        repeat = parse(_Repeat, {"times": None} | {k: v for k, v in raw.items() if k != "kind"}, key)
    except ConfigError as error:
        mistakes.extend(error.mistakes)
        return []
    lengths = {len(value) for _, value in _per_copy(repeat.body)}
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
        placed += read_layers(_of_copy(repeat.body, copy), f"{path}.{copy}.", f"{key}.body", found)
    mistakes.extend(dict.fromkeys(found))  # a mistake in the body is one mistake, however many copies
    return placed


def _takes_list(kind: object, field: str) -> bool:
    layer = members(Layer).get(str(kind))
    return layer is None or field == "body" or "tuple" in str(field_types(layer).get(field))


def _per_copy(body: Sequence[Any]) -> list[tuple[str, Sequence[Any]]]:
    """The values of a body that are lists where a layer takes one value: each copy gets its own."""
    found: list[tuple[str, Sequence[Any]]] = []
    for raw in body:
        if isinstance(raw, Mapping) and raw.get("kind") != "repeat":
            items = raw.items()
            found += [(f, v) for f, v in items if isinstance(v, list) and not _takes_list(raw.get("kind"), f)]
    return found


def _of_copy(body: Sequence[Any], copy: int) -> list[Any]:
    """The body as copy number `copy` sees it, lists replaced by that copy's value."""
    result: list[Any] = []
    for raw in body:
        if isinstance(raw, Mapping) and raw.get("kind") != "repeat":
            chosen = {field: values[copy] for field, values in _per_copy([raw])}
            result.append({**raw, **chosen})
        else:
            result.append(raw)
    return result
