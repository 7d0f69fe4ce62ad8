"""Registries: entries by name, as options of the command line and as JSON."""

import dataclasses
import json

import pytest

from cavmae.common.json_files import parse_json, value_as
from cavmae.common.registry import Options, Registry, registry_of, to_json_value


@dataclasses.dataclass(frozen=True)
class ShapeOptions(Options):
    """Options of a shape."""


SHAPES = Registry("shape", ShapeOptions)


@SHAPES.register("circle", "fractions:Fraction")
@dataclasses.dataclass(frozen=True)
class CircleOptions(ShapeOptions):
    radius: float = 1.0


@SHAPES.register("box", dict)
@dataclasses.dataclass(frozen=True)
class BoxOptions(ShapeOptions):
    sides: tuple[int, int] = (1, 2)
    inside: ShapeOptions = CircleOptions()


@dataclasses.dataclass(frozen=True)
class Drawing:
    shape: ShapeOptions = BoxOptions()
    title: str = ""


@pytest.mark.parametrize(
    "drawing",
    [
        Drawing(),
        Drawing(CircleOptions(2.5), "x"),
        Drawing(BoxOptions((3, 4), BoxOptions((5, 6), CircleOptions(7)))),
    ],
)
def test_entries_return_from_json(drawing: Drawing) -> None:
    text = json.dumps(to_json_value(drawing)).encode()
    assert value_as(Drawing, parse_json(text, "x"), "drawing") == drawing
    assert b'"name"' in text


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        (
            {"name": "circel"},
            "no shape 'circel' .is circle meant..; there are circle, box",
        ),
        ({"radius": 1}, "field name is missing"),
        ({"name": "box", "radius": 1}, "shape has the unknown field radius"),
        ({"name": 3}, "field name is a int"),
        ("circle", "drawing.shape is a str where an object is expected, such as .name: circle"),
    ],
)
def test_json_of_no_entry_is_refused(shape: object, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        value_as(Drawing, {"shape": shape}, "drawing")


def test_entries_are_built_by_their_class() -> None:
    with pytest.raises(TypeError, match="should be a string"):  # the standard class got the options
        SHAPES.build(CircleOptions())
    toys = Registry("toy", type("ToyOptions", (Options,), {}))

    def build(options: Options, *arguments: int, factor: int = 1) -> tuple[object, ...]:
        return options, arguments, factor

    toys.register("a", build)(entry := type("A", (toys.base,), {}))  # type: ignore[arg-type]
    options = entry()
    assert toys.build(options, 1, 2, factor=3) == (options, (1, 2), 3)


def test_names_are_unique_and_bases_are_told_from_entries() -> None:
    with pytest.raises(ValueError, match="already is a shape 'box'"):
        SHAPES.register("box", dict)
    assert list(SHAPES) == ["circle", "box"]
    assert registry_of(ShapeOptions) is SHAPES
    assert registry_of(CircleOptions) is None
    assert registry_of(int) is None
