"""JSON files: read with limits of size, depth and numbers, written without NaN.

Files come from untrusted folders, from broken disks and from interrupted copies. The program reads
every JSON by :func:`read_json` or :func:`parse_json`, which report any damage as one sentence with
the file's name.
"""

import contextlib
import dataclasses
import functools
import itertools
import json
import math
import re
import types
import typing
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from cavmae.common.errors import CavmaeError
from cavmae.common.files import LIMIT_BYTES, read_bytes
from cavmae.common.registry import registry_of

LIMIT_DEPTH = 32  # nested objects and lists
LIMIT_DIGITS = 40  # of an integer; a state of a random generator has 39
REMEDY = "create it again, or fetch an intact copy of it"
# Patterns of numbers beyond the limits after all digits became zeros: matching them takes a
# hundredth of the time of parsing each number.
_HUGE = (b"0" * (LIMIT_DIGITS + 1), b"0e000", b"0e+000", b"0E000", b"0E+000")
_ZEROS = bytes.maketrans(b"123456789", b"0" * 9)
# An unterminated string matches to the end: else the match would restart at each of its quotes.
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)', re.DOTALL)
_PLAIN = frozenset({int, float, str, bool, type(None)})
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


class JSONError(CavmaeError):
    """JSON that is damaged, has unexpected types, or exceeds the limits."""


def read_json(name: str | Path, *, remedy: str = REMEDY, limit_bytes: int = LIMIT_BYTES) -> Any:
    """Reads a JSON file.

    Args:
        name: path or URL.
        remedy: end of the error message: the way to an intact file.
        limit_bytes: largest accepted size.

    Raises:
        FileNotFoundError: the file is missing; callers know the remedy.
        JSONError: the file cannot be read, or see :func:`parse_json`.
    """
    try:
        data = read_bytes(str(name), limit_bytes)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(error.errno, error.strerror or str(error), str(name)) from error
    except (OSError, ValueError) as error:  # a name with a NUL is a ValueError
        reason = getattr(error, "strerror", None) or str(error)
        raise JSONError(f"Cannot read {name} ({reason}): {remedy}.") from error
    return parse_json(data, str(name), remedy=remedy, limit_bytes=limit_bytes)


def parse_json(
    data: bytes, name: str, *, remedy: str = REMEDY, limit_bytes: int = LIMIT_BYTES
) -> Any:
    """Parses UTF-8 JSON. NaN, Infinity and numbers beyond their types are refused.

    Args:
        data: JSON text.
        name: of the file, or file and line, for the error message.
        remedy: end of the error message.
        limit_bytes: largest accepted size.

    Raises:
        JSONError: the text is no JSON, or exceeds the limits of size, depth or numbers.
    """
    try:
        if len(data) > limit_bytes:
            raise ValueError(f"more than {limit_bytes} bytes")
        if _depth(data) > LIMIT_DEPTH:
            raise ValueError(f"more than {LIMIT_DEPTH} levels of lists and objects")
        text = data.decode("utf-8-sig")
        zeros = data.translate(_ZEROS)
        if not any(pattern in zeros for pattern in _HUGE):
            return _DECODER.decode(text)
        return json.loads(text, parse_constant=_refuse, parse_float=_float, parse_int=_int)
    except UnicodeDecodeError as error:
        raise _damaged(name, f"no UTF-8 at byte {error.start}", remedy) from error
    except (ValueError, RecursionError) as error:
        raise _damaged(name, str(error), remedy) from error


def _damaged(name: str, reason: str, remedy: str) -> JSONError:
    return JSONError(f"{name} is damaged ({reason}): {remedy}.")


def json_bytes(value: Any, *, indent: int | None = None, sort_keys: bool = False) -> bytes:
    """Encodes a value as standard JSON, on one line or indented, with a final line break.

    Raises:
        CavmaeError: a number is NaN or infinite; the message names the field.
    """
    try:
        text = json.dumps(value, indent=indent, sort_keys=sort_keys, allow_nan=False)
    except ValueError as error:
        raise CavmaeError(
            f"A record is not written, since {_not_finite(value)} is not a finite number: check "
            "the data and the model's weights."
        ) from error
    return text.encode() + b"\n"


def typed(record: Any, name: str, *types: type) -> Any:
    """Field of a JSON object with one of ``types``; with ``float``, integers become floats.

    Raises:
        ValueError: ``record`` is no object, lacks the field, or has another type there (``bool``
            is no number).
    """
    if not isinstance(record, dict):
        raise ValueError(f"a {type(record).__name__} where an object is expected")
    if name not in record:
        raise ValueError(f"field {name} is missing")
    value = record[name]
    if isinstance(value, bool):
        fits = bool in types
    else:
        fits = isinstance(value, types)
        if not fits and float in types and isinstance(value, int):
            value, fits = float(value), True
    if not fits:
        raise ValueError(f"field {name} is a {type(value).__name__}")
    return value


def value_as(kind: Any, value: Any, name: str) -> Any:
    """Converts a JSON value to an annotated type: nested dataclasses, tuples from lists.

    Args:
        kind: ``int``, ``float``, ``str``, ``bool``, ``None``, a ``Literal``, tuple, dict, list or
            union of these, a dataclass of these, or the base of the options of a registry, whose
            entry the key ``name`` chooses; other types accept any value.
        value: result of :func:`parse_json`, or the value before its encoding as JSON.
        name: of the field, for the error message.

    Raises:
        ValueError: the value has another type, lacks a field, or has an unknown one; and errors of
            a dataclass's own checks.
    """
    if type(value) is kind and kind in _PLAIN:
        return value
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        for option in arguments:
            with contextlib.suppress(ValueError):
                return value_as(option, value, name)
        raise ValueError(f"{name} is a {type(value).__name__}")
    if (registry := registry_of(kind)) is not None:
        if not isinstance(value, dict):
            raise ValueError(
                f"{name} is a {type(value).__name__} where an object is expected, such as "
                f"{{name: {next(iter(registry))}}}"
            )
        entry = typed(value, "name", str)
        kind = registry.options(entry)
        value = {key: inner for key, inner in value.items() if key != "name"}
    if dataclasses.is_dataclass(kind):
        return _dataclass_as(kind, value, name)
    if origin is typing.Literal:
        if not any(type(value) is type(option) and value == option for option in arguments):
            raise ValueError(f"{name} is none of {', '.join(map(str, arguments))}")
        return value
    if hasattr(kind, "_fields"):  # a NamedTuple, which is a list in JSON
        return kind(*_tuple_as(tuple(typing.get_type_hints(kind).values()), value, name))
    if origin is tuple:
        return _tuple_as(arguments, value, name)
    if origin is list:
        return list(_tuple_as((*arguments, ...), value, name))
    if origin is dict:
        record = typed({name: value}, name, dict)
        return {
            key: value_as(arguments[1], inner, f"{name}.{key}") for key, inner in record.items()
        }
    if kind is None:
        kind = type(None)
    plain = origin or kind
    if plain in _PLAIN or plain in (dict, list):
        return typed({name: value}, name, plain)
    return value


def _dataclass_as(kind: Any, value: Any, name: str) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{name} is a {type(value).__name__}, not an object")
    hints, required = _fields_of(kind)
    for key in value:
        if key not in hints:
            raise ValueError(f"{name} has the unknown field {key[:100]}")
    for key in required:
        if key not in value:
            raise ValueError(f"field {name}.{key} is missing")
    return kind(**{key: value_as(hints[key], v, f"{name}.{key}") for key, v in value.items()})


@functools.cache
def _fields_of(kind: type) -> tuple[dict[str, Any], list[str]]:
    """Types of a dataclass's fields, and the names of its required fields."""
    hints = typing.get_type_hints(kind)
    fields = dataclasses.fields(kind)
    missing = dataclasses.MISSING
    required = [f.name for f in fields if f.default is missing and f.default_factory is missing]
    return {f.name: hints[f.name] for f in fields}, required


def _tuple_as(parts: tuple[Any, ...], value: Any, name: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"{name} is a {type(value).__name__}, not a list")
    if parts[1:] == (...,):
        parts = (parts[0],) * len(value)
    if len(parts) != len(value):
        raise ValueError(f"{name} has {len(value)} values, not {len(parts)}")
    return tuple(value_as(part, v, name) for part, v in zip(parts, value, strict=True))


def _depth(data: bytes) -> int:
    """Nesting depth of lists and objects; any number for text that is no JSON."""
    if data.count(b"[") + data.count(b"{") <= LIMIT_DEPTH:
        return 0
    brackets = _STRING.sub(b"", data).translate(None, _NO_BRACKETS)
    kinds = np.frombuffer(brackets, np.uint8)
    opening = (kinds == ord("[")) | (kinds == ord("{"))
    levels = np.cumsum(np.where(opening, 1, -1).astype(np.int8), dtype=np.int32)
    return int(levels.max(initial=0))


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a finite number")


# json.loads would make a decoder for each of a million lines.
_DECODER = json.JSONDecoder(parse_constant=_refuse)


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:LIMIT_DIGITS]} is not a finite number")
    return value


def _int(text: str) -> int:
    if len(text) > LIMIT_DIGITS:
        raise ValueError(f"an integer of {len(text)} digits")
    return int(text)


def _not_finite(value: Any) -> str:
    """Path of a number that is not finite, such as ``people.0.level``."""
    stack = [("", value)]
    while stack:
        path, part = stack.pop()
        if isinstance(part, float) and not math.isfinite(part):
            return path.removeprefix(".") or "it"
        items = (
            part.items()
            if isinstance(part, dict)
            else (
                zip(itertools.count(), part, strict=False) if isinstance(part, list | tuple) else ()
            )
        )
        stack += [(f"{path}.{name}", inner) for name, inner in items]
    return "a key"


def read_records(path: Path, schema: int, limit_bytes: int) -> tuple[Any, list[Any]]:
    """Head and records of a JSON-lines file whose first line, the head, has its ``schema``.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it cannot be read.
        ValueError: it is damaged.
        CavmaeError: it has another schema.
    """
    lines = read_bytes(str(path), limit_bytes).splitlines()
    if not lines:
        raise ValueError("it is empty")
    head, *records = [parse_json(line, f"{path}, line {n}") for n, line in enumerate(lines, 1)]
    if (version := typed(head, "schema", int)) != schema:
        raise CavmaeError(f"{path} is a list of version {version}, this program reads {schema}.")
    return head, records
