"""Check of configuration files before jsonargparse reads them.

jsonargparse imports the module of a ``class_path`` before it refuses it, follows ``config`` keys to
further files, and expands YAML aliases without limit. No option of this project needs these: a
configuration is a table of options of a command, two levels deep, with numbers, strings and lists
as values, and lists of tables where an option is declared as one. The check refuses anything else
from the YAML events, which build no objects.
"""

import contextlib
import difflib
from collections.abc import Collection, Iterable, Iterator, Sequence
from types import UnionType
from typing import Any, NamedTuple, Union, get_args, get_origin

import yaml

from cavmae.common.errors import UsageError
from cavmae.common.files import read_bytes

LIMIT_BYTES = 256 << 10
LIMIT_DEPTH = 8


class OptionNames:
    """Names of a command's options, such as ``data.train``, and of their groups, such as ``data``.

    Args:
        names: of the options; may include names of groups.
        tables: of these, options that may hold a list of tables, each of plain values.
    """

    def __init__(self, names: Iterable[str], tables: Collection[str] = ()):
        self.tables = set(tables)
        parts = [name.split(".") for name in names]
        self.groups = {".".join(p[:n]) for p in parts for n in range(1, len(p))}
        self.names = {".".join(p) for p in parts} - self.groups

    def first_of(self, group: str) -> str:
        """First option of a group, as an example in error messages."""
        return min(name for name in self.names if name.startswith(f"{group}."))

    def suggestion(self, name: str) -> str:
        """OptionNames with similar names, as a suggestion in error messages."""
        similar = difflib.get_close_matches(name, [*self.names, *self.groups], 3)
        return f" (is {' or '.join(similar)} meant?)" if similar else ""


def holds_tables(kind: Any) -> bool:
    """Whether an option of a type may hold a list of tables."""
    if get_origin(kind) is list:
        return any(get_origin(part) is dict for own in get_args(kind) for part in _options(own))
    return any(holds_tables(part) for part in _options(kind) if part is not kind)


def _options(kind: Any) -> tuple[Any, ...]:
    """Members of a union; of another type that type."""
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


class _Level(NamedTuple):
    """Open mapping or list of the parser: path of its options, keys so far."""

    path: str
    seen: set[str] | None  # None: a list
    table: bool = False  # a mapping in a list, whose keys are no options


def check_config(name: str, options: OptionNames, entries: Collection[str] = ()) -> None:
    """Checks that a file contains values of options of a command, and nothing else.

    Args:
        name: of the file.
        options: of the command.
        entries: groups that hold an entry of a registry: its name alone stands for the group.

    Raises:
        UsageError: the file cannot be read, is no YAML, exceeds the limits, or has a key that is
            none of the options.
    """
    source, text = _source(name), _read(name)
    with _yaml_errors(source):
        _check_events(source, list(_limited_events(source, text)), options, entries)


def read_config(name: str) -> dict[str, yaml.Node]:
    """Values of a file by the dotted names of their options.

    Raises:
        UsageError: the file cannot be read, is no YAML, or exceeds the limits.
    """
    source, text = _source(name), _read(name)
    with _yaml_errors(source):
        for _ in _limited_events(source, text):
            pass
        return dict(_values(yaml.compose(text, Loader=yaml.SafeLoader)))


def _values(node: yaml.Node | None, path: str = "") -> Iterator[tuple[str, yaml.Node]]:
    """Values of a mapping and of those in it."""
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        place = f"{path}{key.value}"
        if isinstance(value, yaml.MappingNode):
            yield from _values(value, f"{place}.")
        else:
            yield place, value


def _source(name: str) -> str:
    return f"--config {name}"


def _read(name: str) -> str:
    """Text of a configuration file."""
    source = _source(name)
    try:
        data = read_bytes(name, LIMIT_BYTES)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{source} cannot be read: {reason}.") from error
    if len(data) > LIMIT_BYTES:
        raise UsageError(f"{source} has more than {LIMIT_BYTES} bytes: it is no configuration.")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{source} is no UTF-8 text (byte {error.start}): save it as UTF-8."
        ) from error


@contextlib.contextmanager
def _yaml_errors(source: str) -> Iterator[None]:
    """Turns errors of YAML into a UsageError that names the line."""
    try:
        yield
    except yaml.MarkedYAMLError as error:
        line = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UsageError(f"{source} is no YAML: {error.problem}{line}.") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{source} is no YAML: {str(error).splitlines()[0]}.") from error


def _limited_events(source: str, text: str) -> Iterable[yaml.Event]:
    """YAML events of a text within the limits. Not recursive, unlike YAML constructors."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        line = event.start_mark.line + 1
        if depth > LIMIT_DEPTH:
            raise UsageError(f"{source}, line {line}: more than {LIMIT_DEPTH} levels.")
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise UsageError(
                f"{source}, line {line}: & and * are not supported: write the values out."
            )
        if getattr(event, "tag", None) is not None:
            raise UsageError(f"{source}, line {line}: tags such as {event.tag} are not supported.")
        yield event


def _check_events(
    source: str, events: Sequence[yaml.Event], options: OptionNames, entries: Collection[str]
) -> None:
    """Checks every key and the kind of every value.

    Raises:
        UsageError: see :func:`check_config`.
    """
    documents = sum(isinstance(event, yaml.DocumentStartEvent) for event in events)
    if documents != 1:
        raise UsageError(f"{source} holds {documents} documents: it must be one table of options.")
    levels: list[_Level] = []
    path: str | None = None  # of the next value; None: the next event is a key
    for event in events:
        line = f"{source}, line {event.start_mark.line + 1}"
        if isinstance(event, yaml.CollectionEndEvent):
            levels.pop()
            path = None
            continue
        if not isinstance(event, yaml.NodeEvent):
            continue
        in_list = bool(levels) and levels[-1].seen is None
        if in_list:
            path = levels[-1].path  # every value of a list has the list's path
        elif levels and path is None:
            path = _option_path(line, event, levels[-1], options)
            continue
        mapping = isinstance(event, yaml.MappingStartEvent)
        if not levels and not mapping:
            raise UsageError(
                f"{line}: a configuration is a table such as `data: {{batch_size: 8}}`."
            )
        if levels and path in options.groups and path not in entries and not mapping:
            raise UsageError(f"{line}: {path} takes options, such as {options.first_of(path)}.")
        if levels and levels[-1].table and not isinstance(event, yaml.ScalarEvent):
            raise UsageError(f"{line}: a table in the list {path} takes plain values.")
        table = mapping and in_list and path in options.tables
        if levels and path not in options.groups and mapping and not table:
            raise UsageError(f"{line}: {path} takes a value, not options.")
        if table:
            levels.append(_Level(path or "", set(), table=True))
            path = None
        elif mapping:
            levels.append(_Level(path or "", set()))
            path = None
        elif isinstance(event, yaml.SequenceStartEvent):
            levels.append(_Level(path or "", None))
        else:
            if path is not None and path in entries and (seen := levels[-1].seen) is not None:
                seen.remove(path)
                seen.add(f"{path}.name")  # beside it there may be options of the entry
            path = None


def _option_path(line: str, event: yaml.Event, level: _Level, options: OptionNames) -> str:
    """Path of the option that a key names."""
    if not isinstance(event, yaml.ScalarEvent):
        raise UsageError(f"{line}: a key must be the name of an option.")
    if level.table:
        assert level.seen is not None
        if event.value in level.seen:
            raise UsageError(f"{line}: {event.value[:100]} is set twice: set it once.")
        level.seen.add(event.value)
        return level.path
    path = f"{level.path}.{event.value}" if level.path else event.value
    if path not in options.names and path not in options.groups:
        raise UsageError(
            f"{line}: there is no option {path[:100]}{options.suggestion(path[:100])}."
        )
    assert level.seen is not None
    if any(f"{path}.".startswith(f"{key}.") or key.startswith(f"{path}.") for key in level.seen):
        raise UsageError(f"{line}: {path} is set twice: set it once.")
    level.seen.add(path)
    return path
