"""Sentences about options that the command line's parser refuses."""

import re
import types
from argparse import Action
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any, Literal, Union, get_args, get_origin

KEY = re.compile(r'Parser key "(?P<name>[\w.]+)":\s*(?P<reason>.*)', re.DOTALL)
GIVEN = re.compile(r"(?:Got|Given) value: (?P<value>.*)\s*$")
REQUIRED = "the following arguments are required: "
UNKNOWN = "unrecognized arguments: "
ALIKE = 0.7  # from which an option of another spelling is named
KINDS: dict[object, str] = {
    int: "a whole number", float: "a number", bool: "true or false", str: "text",
    type(None): "null",
}  # fmt: skip


def is_flag(action: Action) -> bool:
    """Whether an option is true or false."""
    return getattr(action, "_typehint", None) is bool


def negated(option: str) -> str:
    """Option that sets a flag to false: ``--no-masks``, ``--loop.no-checkpoint-activations``."""
    group, dot, name = option.removeprefix("--").rpartition(".")
    return f"--{group}{dot}no-{name}"


def option_error(message: str, command: str, actions: Sequence[Action]) -> str:
    """One sentence about the option that a parser's message is about, with what it takes.

    Args:
        message: of jsonargparse.
        command: such as ``cavmae separate``.
        actions: options and arguments of the command.
    """
    listed = f"`{command} --help` lists the options."
    if message.startswith(UNKNOWN):
        unknown = message.removeprefix(UNKNOWN)
        if not unknown.startswith("-"):
            return f"There is no place for the argument {unknown!r}; {listed}"
        option = unknown.split()[0].partition("=")[0].replace("_", "-")
        names = [_spelled(a) for a in actions if a.option_strings]
        names += [negated(_spelled(a)) for a in actions if is_flag(a)]
        near = get_close_matches(option, names, 1, ALIKE)
        meant = f"; is {near[0]} meant?" if near else "."
        return f"There is no option {option}{meant} {listed}"
    if message.startswith(REQUIRED):
        names = message.removeprefix(REQUIRED).split(", ")
        by_name = {action.dest: action for action in actions}
        spelled = [_spelled(by_name[name]) if name in by_name else name for name in names]
        verb = "is" if len(spelled) == 1 else "are"
        return f"{' and '.join(spelled)} {verb} missing; {listed}"
    if match := KEY.search(message):
        action = next((a for a in actions if a.dest == match["name"]), None)
        given = GIVEN.search(match["reason"])
        if action is not None and given is not None:
            value = given["value"].strip()
            expected = expected_by(_type_of(action), value)
            if expected is not None:
                return f"{_spelled(action)} {value}: {expected} is expected."
    sentence = " ".join(message.removeprefix("argument ").split()).removesuffix(".")
    return f"{sentence}. {listed[0].upper()}{listed[1:]}"


def expected_by(hint: Any, value: str = "a") -> str | None:
    """Description of the values of an option's type, such as "a number or auto"; None: not known.

    Args:
        hint: the type.
        value: text for an example of a list.
    """
    if hint in KINDS:
        return KINDS[hint]
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Literal:
        return _either(str(part) for part in parts)
    if origin in (Union, types.UnionType):
        return _joined(expected_by(part, value) for part in parts)
    if origin is tuple and len(parts) == 2 and parts[1] is Ellipsis:
        each = expected_by(parts[0])
        first = get_args(parts[0])[0] if get_origin(parts[0]) is Literal else value
        return None if each is None else f"a list such as '[{first}]', each of it {each},"
    if origin is tuple and len(set(parts)) == 1 and parts[0] in (int, float):
        return f"a list of {len(parts)} numbers, such as '[{', '.join('1' * len(parts))}]',"
    return None


def _either(words: Iterable[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last


def _joined(kinds: Iterable[str | None]) -> str | None:
    known = list(kinds)
    return None if None in known else _either(str(kind) for kind in known)


def _type_of(action: Action) -> Any:
    return getattr(action, "_typehint", None) or action.type


def _spelled(action: Action) -> str:
    """Name of an option or argument as people write it."""
    if not action.option_strings:
        return str(action.metavar or action.dest)
    return f"--{action.dest.replace('_', '-')}"
