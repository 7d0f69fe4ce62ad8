"""Programs of several commands: their listing, and the call of one of them by its name."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from cavmae.common.cli import output
from cavmae.common.errors import UsageError


class Command(NamedTuple):
    """Row in the table of a program's commands.

    Attributes:
        module: that does the work; imported when the command is called, never for a listing.
        purpose: in the listing.
        group: heading in the listing; commands of the same group follow one another.
    """

    module: str
    purpose: str
    group: str = ""


def listing(commands: Mapping[str, Command]) -> str:
    """Names and purposes of commands, a line each, under the headings of their groups."""
    width = max(map(len, commands))
    lines: list[str] = []
    group = ""
    for name, command in commands.items():
        if command.group != group:
            group = command.group
            lines += [*([""] if lines else []), f"{group}:"]
        lines.append(f"  {name:<{width}}  {command.purpose}")
    return "\n".join(lines)


def dispatch(
    program: str,
    kind: str,
    commands: Mapping[str, Command],
    words: Sequence[str],
    call: Callable[[str, Sequence[str]], int | None] | None = None,
) -> int | None:
    """Calls the command that the first word names, or prints the listing.

    Args:
        program: as it is typed, such as ``cavmae bench``.
        kind: of its commands, such as ``benchmark``.
        commands: by name.
        words: of the command line.
        call: runs the command of a name with the words after it; None: its module's ``main``.

    Returns:
        exit code.

    Raises:
        UsageError: no command has that name.
    """
    if not words or words[0] in ("-h", "--help", "help"):
        placeholder = kind.upper()
        output(f"usage: {program} {placeholder} ...\n\n{listing(commands)}")
        output(f"\nRun {program} {placeholder} --help for the options of a {kind}.")
        return 0 if words else 2
    if words[0] not in commands:
        raise UsageError(f"There is no {kind} {words[0]!r}: choose from {', '.join(commands)}.")
    if call is not None:
        return call(words[0], words[1:])
    result: int | None = importlib.import_module(commands[words[0]].module).main(words[1:])
    return result


def import_object(path: str) -> Any:
    """Object of a module, imported by its path ``module:name``."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)
