"""Quoting of untrusted text for printing: file names, labels, messages of libraries.

A file name may contain escape sequences that rewrite a terminal, line breaks that forge a log line,
bidirectional controls, and bytes that are not UTF-8.
"""

import logging
import os
import re
from collections.abc import Mapping
from copy import copy
from typing import Any

# C0 and C1 controls and DEL, line and paragraph separators, bidirectional controls, surrogates
# (bytes of a name that is not UTF-8), noncharacters (no XML may hold them).
_HIDDEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
    "\ufdd0-\ufdef\ufffe\uffff]"
)
_SHORT = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}


def visible(text: object, keep: str = "") -> str:
    """Escapes the control characters of a text, as ``\\x1b`` or ``\\u202e``.

    Args:
        keep: control characters that stay, such as line breaks of a template.
    """

    def escaped(match: re.Match[str]) -> str:
        character = match.group()
        if character in keep:
            return character
        code = ord(character)
        if 0xDC80 <= code <= 0xDCFF:  # a byte of a file's name, as Python holds it
            code -= 0xDC00
        return _SHORT.get(character) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")

    return _HIDDEN.sub(escaped, str(text))


def quoted(value: Any) -> Any:
    """Quotes an argument of a message: strings, paths and errors by :func:`visible`."""
    if isinstance(value, str | os.PathLike | BaseException):
        return visible(value)
    return value


class QuotingFormatter(logging.Formatter):
    """Log formatter that keeps line breaks of the template and quotes those of arguments."""

    def format(self, record: logging.LogRecord) -> str:
        record = copy(record)
        if isinstance(record.args, Mapping):
            record.args = {name: quoted(value) for name, value in record.args.items()}
        elif record.args:
            record.args = tuple(quoted(value) for value in record.args)
        return visible(super().format(record), keep="\n\t")


def caption(text: object, limit: int = 60) -> str:
    """Caption in a figure: quoted by :func:`visible`, and shortened in the middle.

    Args:
        limit: largest number of characters.
    """
    escaped = visible(text)
    if len(escaped) <= limit:
        return escaped
    tail = limit // 3
    return f"{escaped[: limit - tail - 1]}…{escaped[-tail:]}"
