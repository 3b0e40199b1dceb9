"""Mappings to dataclasses: what is read, what is refused, and that all mistakes are reported at once."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import pytest

from harness.core.validation import ConfigError, Mistake, OneOf, Range, nearest, parse, to_plain


@dataclass(frozen=True)
class Circle:
    kind: ClassVar[str] = "circle"
    radius: Annotated[float, Range(min=0.0, exclusive_min=True)]


@dataclass(frozen=True)
class Square:
    kind: ClassVar[str] = "square"
    side: float = 1.0


@dataclass(frozen=True)
class Drawing:
    title: str
    shape: Circle | Square
    copies: Annotated[int, Range(min=1, max=9)] = 1
    colours: tuple[Literal["red", "green"], ...] = ()
    corner: tuple[int, float] = (0, 0.0)
    scale: Annotated[float, Range(min=0.0)] | None = None
    paper: Annotated[str, OneOf(("a4", "a5"))] = "a4"
    bold: bool = False
    extra: dict[str, Any] = field(default_factory=dict)
    sizes: dict[str, tuple[int, ...]] = field(default_factory=dict)


WHOLE: dict[str, Any] = {
    "title": "t",
    "shape": {"kind": "circle", "radius": 2},
    "copies": 3,
    "colours": ["red", "green"],
    "corner": [1, 2],
    "scale": 0.5,
    "paper": "a5",
    "bold": True,
    "extra": {"x": [1]},
    "sizes": {"page": [210, 297]},
}


def refused(**changes: Any) -> dict[str, Mistake]:
    """The mistakes that `WHOLE` with these changes has, by their keys."""
    with pytest.raises(ConfigError) as caught:
        parse(Drawing, WHOLE | changes, "drawing")
    by_key = {mistake.key: mistake for mistake in caught.value.mistakes}
    assert len(by_key) == len(caught.value.mistakes)
    return by_key


def test_what_is_read_is_typed_and_comes_back_from_its_plain_form() -> None:
    """Catches: a field that is dropped or left unread, and a plain form that loses the tag of a union."""
    drawing = parse(Drawing, WHOLE)
    expected = Drawing(
        "t", Circle(2.0), 3, ("red", "green"), (1, 2.0), 0.5, "a5", True, {"x": [1]}, {"page": (210, 297)}
    )
    assert drawing == expected
    assert isinstance(drawing.shape, Circle) and isinstance(drawing.shape.radius, float)
    assert parse(Drawing, to_plain(drawing)) == drawing


def test_defaults_fill_what_is_left_out() -> None:
    """Catches: a default that counts as missing, and an optional value that can't be null."""
    drawing = parse(Drawing, {"title": "t", "shape": {"kind": "square"}, "scale": None})
    assert drawing == Drawing("t", Square())


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("title", 3, "3 is not a string"),
        ("title", None, "null is not a string"),
        ("copies", "2", "'2' is not a whole number"),
        ("copies", 2.0, "2.0 is not a whole number"),
        ("copies", True, "True is not a whole number"),
        ("copies", [1, 2], "[1, 2] is not a whole number"),
        ("scale", "1", "'1' is not a number"),
        ("scale", False, "False is not a number"),
        ("scale", math.nan, "nan is not a finite number"),
        ("scale", math.inf, "inf is not a finite number"),
        ("scale", -0.1, "-0.1 is out of range"),
        ("copies", 0, "0 is out of range"),
        ("copies", 10, "10 is out of range"),
        ("bold", 1, "1 is not true or false"),
        ("bold", "yes", "'yes' is not true or false"),
        ("colours", "red", "'red' is not a list"),
        ("corner", [1], "[1] is not a list of 2"),
        ("extra", [], "[] is not a mapping"),
        ("shape", "circle", "'circle' is not a mapping with the key 'kind'"),
        ("paper", "a6", "'a6' is not known"),
    ],
)
def test_a_value_of_the_wrong_type_or_out_of_bounds_is_refused(key: str, value: object, problem: str) -> None:
    """Catches: silent conversion (2.0 or True as a number of copies), bounds that are not looked at."""
    assert refused(**{key: value})[f"drawing.{key}"].problem == problem


def test_a_whole_number_too_large_for_a_float_is_refused() -> None:
    """Catches: an OverflowError on the way to a message."""
    assert refused(scale=10**400)["drawing.scale"].problem.endswith("is not a finite number")


@pytest.mark.parametrize("kind", ["cirle", None, ["circle"], {"a": 1}])
def test_an_unknown_member_of_a_union_is_answered_with_all_members(kind: object) -> None:
    """Catches: a KeyError or a TypeError (a list can't be looked up) where a kind is not one."""
    mistake = refused(shape={"kind": kind})["drawing.shape.kind"]
    assert mistake.allowed == "circle, square"
    assert mistake.suggestion == ("circle" if kind == "cirle" else mistake.suggestion)


def test_all_mistakes_come_at_once_with_their_places() -> None:
    """Catches: stopping at the first mistake, in a mapping, in a list, in a nested dataclass or in the
    values of a mapping."""
    problems = refused(
        copies=0,
        colours=["red", "gren", 3],
        corner=["a", "b"],
        shape={"kind": "circle", "radios": 1},
        sizes={"page": 3, "margin": [1, 2.5]},
        titel=1,
    )
    assert set(problems) == {
        "drawing.copies",
        "drawing.colours[1]",
        "drawing.colours[2]",
        "drawing.corner[0]",
        "drawing.corner[1]",
        "drawing.shape.radios",
        "drawing.shape.radius",
        "drawing.sizes.page",
        "drawing.sizes.margin[1]",
        "drawing.titel",
    }
    assert problems["drawing.shape.radius"].problem == "is missing"
    assert problems["drawing.shape.radios"].suggestion == "radius"
    assert problems["drawing.titel"].suggestion == "title"
    assert problems["drawing.colours[1]"].suggestion == "green"
    assert problems["drawing.copies"].allowed == ">= 1 and <= 9"


def test_an_exclusive_bound_excludes_its_value_and_says_so() -> None:
    """Catches: > read as >=, in the check or in the message."""
    mistake = refused(shape={"kind": "circle", "radius": 0})["drawing.shape.radius"]
    assert mistake.allowed == "> 0"
    assert parse(Circle, {"radius": 1e-300}).radius == 1e-300
    below_one = Range(min=0.0, max=1.0, exclusive_max=True)
    assert below_one.contains(0.0) and not below_one.contains(1.0) and str(below_one) == ">= 0 and < 1"


def test_a_tag_of_another_member_is_no_key_of_this_one() -> None:
    """Catches: reading a dataclass under another's name because its keys happen to fit."""
    with pytest.raises(ConfigError, match="kind: circle has no such key"):
        parse(Circle, {"kind": "square", "radius": 1})


def test_the_message_is_for_people() -> None:
    """Catches: a message that lacks the count, the place, what is allowed, what was meant or its source;
    and the same mistake reported twice."""
    mistake = Mistake("train.epoch", "no such key", "epochs, loss", "epochs", "my/conf.yaml")
    lines = str(ConfigError([mistake, mistake, Mistake("", "b")])).splitlines()
    assert lines == [
        "2 mistakes in the request; nothing was started:",
        "  - train.epoch: no such key; did you mean 'epochs'?",
        "      allowed: epochs, loss",
        "      in: my/conf.yaml",
        "  - b",
    ]
    assert str(ConfigError([mistake])).startswith("1 mistake in")


def test_nearest_is_silent_where_nothing_is_near() -> None:
    """Catches: a suggestion that has nothing to do with what was written."""
    assert nearest("lstmm", ["fnn", "lstm"]) == "lstm"
    assert nearest("transformer", ["fnn", "lstm"]) == ""
