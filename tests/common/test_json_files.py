"""JSON files: limits of size, depth and numbers, one sentence with the file's name."""

import dataclasses
import json
import math
import os
import re
import subprocess
import sys
from typing import Literal, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cavmae.common.errors import CavmaeError
from cavmae.common.json_files import (
    LIMIT_BYTES,
    JSONError,
    json_bytes,
    parse_json,
    read_json,
    typed,
    value_as,
)

FINITE = st.floats(allow_nan=False, allow_infinity=False)
INTEGERS = st.integers(-(10**30), 10**30)
VALUES = st.recursive(
    st.none() | st.booleans() | INTEGERS | FINITE | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(VALUES)
def test_round_trip(value: object) -> None:
    assert parse_json(json_bytes(value), "x.json") == value
    assert parse_json(json_bytes(value, indent=1, sort_keys=True), "x.json") == value


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"[" * 100_000, "levels"),
        (b'{"a":' * 50 + b"1" + b"}" * 50, "levels"),
        (b"[NaN]", "NaN is not a finite number"),
        (b'{"a": -Infinity}', "-Infinity is not a finite number"),
        (b"[1e999]", "1e999 is not a finite number"),
        (b"9" * 5000, "an integer of 5000 digits"),
        (b'\xff\xfe{\x00"\x00', "no UTF-8 at byte 0"),
        (b'{"a": "\xe9"}', "no UTF-8 at byte 7"),
        (b"", "Expecting value"),
        (b'{"a": 1', "Expecting"),
        (b"\0" * 100, "Expecting value"),
        (b'"' + b"a" * 2000 + b'"', "more than 1000 bytes"),
    ],
)  # fmt: skip
def test_damaged_json_is_one_sentence(data: bytes, reason: str) -> None:
    limit = 1000 if b"aaa" in data else LIMIT_BYTES
    with pytest.raises(JSONError) as caught:
        parse_json(data, "somewhere.json", remedy="copy it again", limit_bytes=limit)
    text = str(caught.value)
    assert text.startswith("somewhere.json is damaged (") and text.endswith("): copy it again.")
    assert reason in text and "\n" not in text and len(text) < 200


def test_brackets_in_texts_are_no_levels() -> None:
    value = {"a": '[{"\\' * 100, "b": ["\\", "]" * 100]}
    assert parse_json(json.dumps(value).encode(), "x.json") == value


def test_an_unterminated_string_does_not_hang() -> None:
    """A match that restarts at each of its quotes takes hours."""
    script = """
from cavmae.common.json_files import JSONError, parse_json
try:
    parse_json(b"[" * 33 + b'"' + b'\\\\"' * 1_000_000, "x.json")
except JSONError as error:
    print(error)
"""
    run = [sys.executable, "-c", script]
    message = subprocess.run(run, capture_output=True, text=True, timeout=60, check=True).stdout
    assert "x.json is damaged (more than 32 levels" in message


def test_files(tmp_path) -> None:
    path = tmp_path / "x.json"
    with pytest.raises(FileNotFoundError):
        read_json(path)
    path.write_bytes(b"\xef\xbb\xbf[1]")  # as some editors on Windows begin a file
    assert read_json(path) == [1]
    with pytest.raises(FileNotFoundError):
        read_json(path / "y.json")
    with pytest.raises(JSONError, match=r"x\.json is damaged .more than 3 bytes"):
        read_json(path, limit_bytes=3)
    with pytest.raises(JSONError, match="no regular file"):
        read_json(tmp_path)
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(JSONError, match="no regular file"):  # and not waited for
        read_json(tmp_path / "pipe.json")
    with pytest.raises(JSONError, match="null byte"):
        read_json("x\0.json")


def test_numbers_that_are_not_finite_are_not_written() -> None:
    with pytest.raises(CavmaeError, match=r"people\.1\.level is not a finite number"):
        json_bytes({"people": [{"level": 1.0}, {"level": math.nan}]})
    with pytest.raises(CavmaeError, match="since it is not"):
        json_bytes(math.inf)


def test_typed_fields() -> None:
    record = {"n": 3, "x": 0.5, "yes": True, "none": None}
    assert typed(record, "n", int) == 3
    number = typed(record, "n", float)
    assert number == 3.0 and isinstance(number, float)
    assert typed(record, "yes", bool) is True
    assert typed(record, "none", str, type(None)) is None
    for name, kind in (("x", int), ("yes", int), ("yes", float), ("none", float), ("n", str)):
        with pytest.raises(ValueError, match=f"field {name} is a "):
            typed(record, name, kind)
    with pytest.raises(ValueError, match="field gone is missing"):
        typed(record, "gone", int)
    with pytest.raises(ValueError, match="a list where an object is expected"):
        typed([], "n", int)


class Part(NamedTuple):
    number: int
    name: str


@dataclasses.dataclass(frozen=True)
class Inner:
    size: tuple[int, int]
    kind: Literal["a", "b"] = "a"


@dataclasses.dataclass(frozen=True)
class Whole:
    inner: Inner
    rate: float | None = None
    names: tuple[str, ...] = ()
    parts: list[Part] = dataclasses.field(default_factory=list)
    counts: dict[str, int] = dataclasses.field(default_factory=dict)


def test_dataclasses_of_json() -> None:
    whole = Whole(Inner((1, 2), "b"), 3.0, ("x", "y"), [Part(1, "p")], {"n": 4})
    record = parse_json(json_bytes(dataclasses.asdict(whole)), "x.json")
    assert value_as(Whole, record, "it") == whole
    assert value_as(Whole, {"inner": {"size": [1, 2]}}, "it") == Whole(Inner((1, 2)))
    assert isinstance(value_as(Whole, {**record, "rate": 3}, "it").rate, float)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"inner": [1, 2]}, "it.inner is a list, not an object"),
        ({"inner": {}}, "field it.inner.size is missing"),
        ({"inner": {"size": [1, 2], "more": 1}}, "it.inner has the unknown field more"),
        ({"inner": {"size": [1, 2, 3]}}, "it.inner.size has 3 values, not 2"),
        ({"inner": {"size": [1, True]}}, "it.inner.size is a bool"),
        ({"inner": {"size": [1, 2.0]}}, "it.inner.size is a float"),
        ({"inner": {"size": [1, 2], "kind": "c"}}, "it.inner.kind is none of a, b"),
        ({"rate": "3"}, "it.rate is a str"),
        ({"rate": False}, "it.rate is a bool"),
        ({"names": "xy"}, "it.names is a str, not a list"),
        ({"names": ["x", None]}, "it.names is a NoneType"),
        ({"parts": [[1]]}, "it.parts has 1 values, not 2"),
        ({"counts": {"n": "4"}}, "it.counts.n is a str"),
    ],
)
def test_dataclasses_of_other_json(change: dict[str, object], reason: str) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)):
        value_as(Whole, {"inner": {"size": [1, 2]}, **change}, "it")
