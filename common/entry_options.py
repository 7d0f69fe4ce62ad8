"""Options of registry entries on the command line and in configuration files.

The options of a command depend on the entries that its arguments choose: `--model.separator NAME`,
or `separator: NAME` in a configuration, decides which options `--model.separator.*` has. So the
names are read before the options are declared. A configuration may hold options of an entry that a
later argument replaces; those are left out.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, get_type_hints

import yaml

from cavmae.common.config_files import OptionNames, check_config, holds_tables, read_config
from cavmae.common.errors import UsageError
from cavmae.common.registry import Registry, registry_of

Values = dict[str, yaml.Node]  # of a configuration, by the dotted names of options


class _Argument(NamedTuple):
    """Words of one option: its text, its dotted name, its value, the values of its file."""

    words: list[str]
    option: str
    value: str | None
    config: Values | None


def choose_entries(
    settings_class: type, words: Sequence[str], others: Iterable[str]
) -> tuple[type, list[str]]:
    """Settings class with the options of the chosen entries, and arguments for them.

    Args:
        settings_class: dataclass; a field that holds an entry of a registry has its base as type.
        words: of the command line.
        others: names of options of the command that are not of the settings.

    Returns:
        the settings class, in which entries have their fields and ``name``, and arguments in which
        configurations are texts with values of these options only. Without entries both are as
        they were.

    Raises:
        UsageError: there is no entry of a name, or see :func:`check_config`.
    """
    paths = {path for path, _ in _option_names(_with_entries(settings_class, {})) if path}
    if not paths:
        return settings_class, list(words)
    arguments = list(_arguments(words))
    names: dict[str, str] = {}
    for argument in arguments:
        names |= _names_in(argument)
    chosen = _with_entries(settings_class, names)
    known = {name for _, name in _option_names(chosen)}
    rewritten: list[str] = []
    for argument in arguments:
        if argument.config is None:
            rewritten += _spelled(argument, chosen)
            continue
        file_names = names | _names_in(argument)
        own = _with_entries(settings_class, file_names)
        assert argument.value is not None
        allowed = known | {name for _, name in _option_names(own)}
        options = OptionNames({*allowed, *others}, _table_paths(own))
        check_config(argument.value, options, _entry_paths(own))
        text = _text(argument.config, names, file_names, _entry_paths(own))
        rewritten.append(f"--config={text}")
    return chosen, rewritten


def _arguments(words: Sequence[str]) -> Iterator[_Argument]:
    """Words by options; words that are no option's are by themselves."""
    number = 0
    while number < len(words):
        name, equals, value = words[number].partition("=")
        option = name[2:].replace("-", "_") if name.startswith("--") and " " not in name else ""
        if words[number] == "--":
            yield _Argument(list(words[number:]), "", None, None)
            return
        taken = [words[number]]
        following = words[number + 1] if number + 1 < len(words) else None
        given = value if equals else following if option else None
        config = None
        if option == "config" and given is not None:
            config = read_config(given)
            taken = list(words[number : number + (1 if equals else 2)])
        yield _Argument(taken, option, given, config)
        number += len(taken)


def _names_in(argument: _Argument) -> dict[str, str]:
    """Names that an argument may choose entries by: dotted path of a field -> name."""
    if argument.config is not None:
        return {
            path.removesuffix(".name"): str(node.value)
            for path, node in argument.config.items()
            if isinstance(node, yaml.ScalarNode)
        }
    if argument.option and argument.value is not None:
        return {argument.option.removesuffix(".name"): argument.value}
    return {}


def _spelled(argument: _Argument, chosen: type) -> list[str]:
    """Words of an argument; ``--PATH NAME`` of an entry becomes ``--PATH.name NAME``."""
    if argument.option not in _entry_paths(chosen):
        return argument.words
    _, equals, value = argument.words[0].partition("=")
    return [f"--{argument.option}.name{equals}{value}", *argument.words[1:]]


def _text(
    config: Values, names: dict[str, str], file_names: dict[str, str], paths: set[str]
) -> str:
    """Configuration without options of entries that are not the chosen ones."""
    replaced = {p for p in paths if p in names and names[p] != file_names.get(p, names[p])}
    kept = [
        (yaml.ScalarNode("tag:yaml.org,2002:str", f"{path}.name" if path in paths else path), node)
        for path, node in config.items()
        if not any(f"{path}.".startswith(f"{entry}.") for entry in replaced)
    ]
    text = yaml.serialize(yaml.MappingNode("tag:yaml.org,2002:map", kept))
    assert isinstance(text, str)
    return text


def _with_entries(settings_class: type, names: dict[str, str], path: str = "") -> Any:
    """Dataclass whose fields of registries have the type of the chosen entries' options.

    Args:
        names: of the entries by dotted path; others are the defaults.
        path: dotted path of the class, with a final dot.

    Raises:
        UsageError: there is no entry of a name.
    """
    hints = get_type_hints(settings_class)
    changed: dict[str, tuple[Any, Any]] = {}
    for field in dataclasses.fields(settings_class):
        kind, default, place = hints[field.name], field.default, f"{path}{field.name}"
        if (registry := registry_of(kind)) is not None:
            try:
                entry = registry.options(names.get(place, default.name))
            except ValueError as error:
                raise UsageError(f"{place}: {error}.") from error
            inner = _named(_with_entries(entry, names, f"{place}."), entry, registry)
            changed[field.name] = inner, default if type(default) is entry else entry()
        elif dataclasses.is_dataclass(kind) and isinstance(kind, type):
            inner = _with_entries(kind, names, f"{place}.")
            if inner is not kind:
                changed[field.name] = inner, default
    if not changed:
        return settings_class
    return _derived(
        settings_class,
        {name: (inner, _converted(inner, default)) for name, (inner, default) in changed.items()},
        settings_class.__doc__ or "",
    )


def _derived(base: type, fields: dict[str, tuple[Any, Any]], doc: str) -> Any:
    """Dataclass with some fields (type, default) of a base replaced or added."""
    namespace: dict[str, Any] = {name: default for name, (_, default) in fields.items()}
    namespace["__annotations__"] = {name: kind for name, (kind, _) in fields.items()}
    namespace |= {"__doc__": doc, "__module__": base.__module__, "__post_init__": lambda _: None}
    return dataclasses.dataclass(frozen=True)(type(base.__name__, (base,), namespace))


def _named(inner: type, entry: Any, registry: Registry[Any]) -> Any:
    """Options of an entry with the field ``name``."""
    doc, _, fields = (inner.__doc__ or "").partition("Args:\n")
    text = f"name: of the {registry.kind}; one of {', '.join(registry)}."
    described = f"{doc.rstrip()}\n\n    Args:\n        {text}\n"
    kind = Literal.__getitem__(tuple(registry))
    return _derived(inner, {"name": (kind, entry.name)}, f"{described}{fields}")


def _converted(kind: Any, value: Any) -> Any:
    """Value of a dataclass as one of a class that was derived from it; of another entry: as new."""
    if not dataclasses.is_dataclass(kind) or not isinstance(kind, type):
        return value
    if not issubclass(kind, type(value)):
        return kind()
    hints = get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]
    return kind(**{name: _converted(hints[name], getattr(value, name)) for name in names})


def _option_names(settings_class: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Dotted names of all options, each with the path of the entry it is the name of, or ``""``."""
    hints = get_type_hints(settings_class)
    for field in dataclasses.fields(settings_class):
        place = f"{path}{field.name}"
        if dataclasses.is_dataclass(hints[field.name]):
            yield from _option_names(hints[field.name], f"{place}.")
        else:
            is_name = field.name == "name" and hasattr(settings_class, "registry")
            yield path.removesuffix(".") if is_name else "", place


def _entry_paths(settings_class: Any) -> set[str]:
    """Dotted paths of the fields that hold entries of registries."""
    return {path for path, _ in _option_names(settings_class) if path}


def _table_paths(settings_class: Any, path: str = "") -> set[str]:
    """Dotted paths of the options that may hold a list of tables."""
    paths: set[str] = set()
    for name, kind in get_type_hints(settings_class).items():
        if dataclasses.is_dataclass(kind):
            paths |= _table_paths(kind, f"{path}{name}.")
        elif holds_tables(kind):
            paths.add(f"{path}{name}")
    return paths
