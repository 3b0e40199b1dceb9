"""Parse plain mappings (YAML, JSON) into frozen dataclasses, and report all mistakes at once.

A typo in the last axis of a sweep must not stop it after an hour, so nothing starts before the whole request
was parsed here. The dataclass is the schema: its type hints define what is allowed, `Annotated[...]` adds
bounds, and a `kind` (or `name`) key selects the member of a union of dataclasses. The same parser reads
configurations, layer trees and the job files of workers. It uses the standard library only, because a
worker's interpreter may have few packages.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import sys
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, Union

T = TypeVar("T")

TAGS = ("kind", "name")  # class variables that identify the members of a union


@dataclass(frozen=True)
class Range:
    """Bounds of a number, for `Annotated[float, Range(min=0.0)]`; None means no bound."""

    min: float | None = None
    max: float | None = None
    exclusive_min: bool = False
    exclusive_max: bool = False

    def __str__(self) -> str:
        low = None if self.min is None else f"{'>' if self.exclusive_min else '>='} {self.min:g}"
        high = None if self.max is None else f"{'<' if self.exclusive_max else '<='} {self.max:g}"
        return " and ".join(part for part in (low, high) if part)

    def contains(self, value: float) -> bool:
        """Return whether `value` is within the bounds."""
        if self.min is not None and (value < self.min or (self.exclusive_min and value == self.min)):
            return False
        return self.max is None or not (value > self.max or (self.exclusive_max and value == self.max))


@dataclass(frozen=True)
class OneOf:
    """The allowed strings, computed from a table: `Annotated[str, OneOf(tuple(INITIALISERS))]`."""

    values: tuple[str, ...]


@dataclass(frozen=True)
class AllowInfinity:
    """Allow infinity, for computed values rather than requested ones: `Annotated[float, AllowInfinity()]`."""


@dataclass(frozen=True)
class Mistake:
    """One mistake in a request: its key, the problem, the allowed values, a suggestion, and its source."""

    key: str
    problem: str
    allowed: str = ""
    suggestion: str = ""
    source: str = ""
    hints: tuple[str, ...] = ()

    def __str__(self) -> str:
        text = f"{self.key}: {self.problem}" if self.key else self.problem
        if self.suggestion:
            text += f"; did you mean {self.suggestion!r}?"
        if self.allowed:
            text += f"\n      allowed: {self.allowed}"
        for hint in self.hints:
            text += f"\n      {hint}"
        if self.source:
            text += f"\n      in: {self.source}"
        return text


class ConfigError(Exception):
    """A request with mistakes, all of which it contains. The command line exits with status 2."""

    def __init__(self, mistakes: Iterable[Mistake]) -> None:
        self.mistakes = tuple(dict.fromkeys(mistakes))
        super().__init__(str(self))

    def __str__(self) -> str:
        count = len(self.mistakes)
        title = "1 mistake in the request" if count == 1 else f"{count} mistakes in the request"
        return "\n".join([f"{title}; nothing was started:", *(f"  - {m}" for m in self.mistakes)])


def nearest(word: str, choices: Iterable[str]) -> str:
    """Return the choice most similar to `word`, or an empty string if none is similar."""
    matches = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.6)
    return matches[0] if matches else ""


def parse(kind: type[T], data: object, key: str = "") -> T:
    """Parse `data` as the dataclass `kind`; messages name keys below `key`.

    Raises ConfigError with all mistakes.
    """
    mistakes: list[Mistake] = []
    value = _read(kind, data, key, mistakes)
    if mistakes:
        raise ConfigError(mistakes)
    return typing.cast(T, value)


def to_plain(value: object) -> Any:
    """Return the JSON form of a parsed value: `parse(type(x), to_plain(x)) == x`."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        tag, title = _class_tag(type(value))
        plain: dict[str, Any] = {tag: title} if tag else {}
        return plain | {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): to_plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(v) for v in value]
    return value


@functools.cache
def field_types(kind: type) -> Mapping[str, Any]:
    """Return the resolved type hints of a dataclass' fields, including `Annotated`."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return {f.name: hints[f.name] for f in dataclasses.fields(kind) if f.init}


def members(union: Any) -> dict[str, type]:
    """Return the dataclasses of a tagged union by their tag."""
    return {_class_tag(m)[1]: m for m in typing.get_args(union)}


def _class_tag(kind: type) -> tuple[str, str]:
    for tag in TAGS:
        if "ClassVar" in str(kind.__annotations__.get(tag, "")):
            return tag, getattr(kind, tag)
    return "", ""


def _read(hint: Any, data: object, key: str, mistakes: list[Mistake]) -> object:
    origin = typing.get_origin(hint)
    if origin is typing.Annotated:
        base, *rules = typing.get_args(hint)
        if data in (math.inf, -math.inf) and any(isinstance(rule, AllowInfinity) for rule in rules):
            return data
        before = len(mistakes)
        value = _read(base, data, key, mistakes)
        return value if len(mistakes) > before else _check(value, rules, key, mistakes)
    if origin in (Union, types.UnionType):
        return _read_union(hint, data, key, mistakes)
    if origin is Literal:
        choices = typing.get_args(hint)
        if data in choices and not isinstance(data, bool):
            return data
        return _refuse_choice(data, [str(c) for c in choices], key, mistakes)
    if origin is tuple:
        return _read_tuple(typing.get_args(hint), data, key, mistakes)
    if origin is dict or hint is dict:
        if not isinstance(data, Mapping):
            return _refuse(data, "a mapping", key, mistakes)
        _, value_hint = typing.get_args(hint) or (str, Any)
        return {name: _read(value_hint, each, _join(key, str(name)), mistakes) for name, each in data.items()}
    if hint is Any:
        return data
    if dataclasses.is_dataclass(hint):
        return _read_dataclass(typing.cast(type, hint), data, key, mistakes)
    return _read_scalar(hint, data, key, mistakes)


def _read_scalar(hint: Any, data: object, key: str, mistakes: list[Mistake]) -> object:
    if hint is bool and isinstance(data, bool):
        return data
    if hint is int and isinstance(data, int) and not isinstance(data, bool):
        return data
    if hint is float and isinstance(data, (int, float)) and not isinstance(data, bool):
        if abs(data) <= sys.float_info.max:  # false for NaN, infinity and integers of 400 digits
            return float(data)
        return _refuse(data, "a finite number", key, mistakes)
    if hint is str and isinstance(data, str):
        return data
    expected = {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}[hint]
    return _refuse(data, expected, key, mistakes)


def _read_union(hint: Any, data: object, key: str, mistakes: list[Mistake]) -> object:
    options = [m for m in typing.get_args(hint) if m is not type(None)]
    if data is None and len(options) < len(typing.get_args(hint)):
        return None
    if len(options) == 1:
        return _read(options[0], data, key, mistakes)
    if not all(dataclasses.is_dataclass(m) for m in options):
        for option in options:
            attempt: list[Mistake] = []
            value = _read(option, data, key, attempt)
            if not attempt:
                return value
        mistakes.extend(attempt)
        return None
    table = {_class_tag(m)[1]: m for m in options}
    tag = _class_tag(options[0])[0]
    if not isinstance(data, Mapping):
        return _refuse(data, f"a mapping with the key {tag!r}", key, mistakes)
    member = data.get(tag)
    if not isinstance(member, str) or member not in table:
        return _refuse_choice(member, list(table), _join(key, tag), mistakes)
    return _read_dataclass(table[member], data, key, mistakes)


def _read_tuple(items: tuple[Any, ...], data: object, key: str, mistakes: list[Mistake]) -> object:
    if not isinstance(data, Sequence) or isinstance(data, str):
        return _refuse(data, "a list", key, mistakes)
    if len(items) == 2 and items[1] is Ellipsis:
        return tuple(_read(items[0], v, f"{key}[{i}]", mistakes) for i, v in enumerate(data))
    if len(data) != len(items):
        return _refuse(data, f"a list of {len(items)}", key, mistakes)
    pairs = enumerate(zip(items, data, strict=True))
    return tuple(_read(hint, value, f"{key}[{i}]", mistakes) for i, (hint, value) in pairs)


def _read_dataclass(kind: type, data: object, key: str, mistakes: list[Mistake]) -> object:
    if not isinstance(data, Mapping):
        return _refuse(data, "a mapping", key, mistakes)
    tag, title = _class_tag(kind)
    if tag:
        data = {k: v for k, v in data.items() if (k, v) != (tag, title)}
    hints = field_types(kind)
    before = len(mistakes)
    for name in data:
        if name not in hints:
            problem = f"{title} has no such key" if title else "no such key"
            allowed = ", ".join(hints) or "no keys"
            mistakes.append(Mistake(_join(key, str(name)), problem, allowed, nearest(str(name), hints)))
    values: dict[str, object] = {}
    for field in dataclasses.fields(kind):
        if not field.init:
            continue
        if field.name in data:
            values[field.name] = _read(hints[field.name], data[field.name], _join(key, field.name), mistakes)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            mistakes.append(Mistake(_join(key, field.name), "is missing"))
    return kind(**values) if len(mistakes) == before else None


def _check(value: object, rules: Sequence[object], key: str, mistakes: list[Mistake]) -> object:
    for rule in rules:
        if isinstance(rule, Range) and isinstance(value, (int, float)) and not rule.contains(value):
            mistakes.append(Mistake(key, f"{value!r} is out of range", str(rule)))
        if isinstance(rule, OneOf) and value not in rule.values:
            _refuse_choice(value, list(rule.values), key, mistakes)
    return value


def _refuse(data: object, expected: str, key: str, mistakes: list[Mistake]) -> object:
    value = "null" if data is None else f"{data!r}"
    mistakes.append(Mistake(key, f"{value} is not {expected}"))
    return None


def _refuse_choice(data: object, choices: Sequence[str], key: str, mistakes: list[Mistake]) -> object:
    suggestion = nearest(str(data), choices)
    problem = "has no value" if data is None else f"{data!r} is not known"
    mistakes.append(Mistake(key, problem, ", ".join(choices), suggestion))
    return None


def _join(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name
