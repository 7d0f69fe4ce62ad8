"""Command line: parsing, exit codes and messages of every command."""

import contextlib
import dataclasses
import errno
import logging
import math
import os
import signal
import sys
from argparse import SUPPRESS
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from jsonargparse import ArgumentParser, Namespace

from cavmae.common.config_files import OptionNames, check_config, holds_tables
from cavmae.common.entry_options import choose_entries
from cavmae.common.errors import CavmaeError, UsageError
from cavmae.common.option_errors import is_flag, negated, option_error
from cavmae.common.quoting import QuotingFormatter, quoted, visible
from cavmae.common.registry import registry_of
from cavmae.common.threads import limit_spinning

log = logging.getLogger("cavmae")
Settings = TypeVar("Settings")
REMEDIES = {
    errno.EACCES: "mend its permissions, or name another",
    errno.EPERM: "mend its permissions, or name another",
    errno.ENOENT: "check its name",
    errno.ENOSPC: "free some space and run the same again",
    errno.EDQUOT: "free some space and run the same again",
}


class _Parser(ArgumentParser):
    """Argument parser whose errors are a sentence, and that shows options with hyphens."""

    def error(self, message: str, ex: Exception | None = None) -> None:
        if not self.exit_on_error:
            super().error(message, ex)
        sys.stderr.write(f"cavmae: {visible(option_error(message, self.prog, self._actions))}\n")
        sys.exit(2)

    def format_usage(self) -> str:
        with self._spelled_for_help():
            return super().format_usage()

    def format_help(self) -> str:
        with self._spelled_for_help():
            return super().format_help()

    @contextlib.contextmanager
    def _spelled_for_help(self) -> Iterator[None]:
        """Spells options as the documentation does: ``--second-look, --no-second-look``."""
        spelled = [
            action
            for action in self._actions
            if action.option_strings and action.dest not in ("help", "print_config")
        ]
        parsed_as = [(a.option_strings, a.nargs, a.help) for a in spelled]
        groups = OptionNames(action.dest for action in spelled).groups
        for action in spelled:
            name = action.dest.replace("_", "-")
            action.option_strings = [f"--{name}"]
            if is_flag(action):
                action.option_strings, action.nargs = [f"--{name}", negated(f"--{name}")], 0
            elif action.dest in groups:
                action.help = SUPPRESS  # a group takes no value: see `parse`
        try:
            yield
        finally:
            for action, (strings, nargs, text) in zip(spelled, parsed_as, strict=True):
                action.option_strings, action.nargs, action.help = strings, nargs, text


def parser(command: str, description: str) -> ArgumentParser:
    """Argument parser of a command, with ``--config FILE`` and ``--print_config``."""
    command_parser = _Parser(prog=f"cavmae {command}", description=description, allow_abbrev=False)
    command_parser.add_argument(
        "--config", action="config", help="YAML file with values for the options below."
    )
    return command_parser


def parse_settings(
    command_parser: ArgumentParser, settings_class: type[Settings], arguments: Sequence[str]
) -> tuple[Settings, Namespace]:
    """Adds the options of a settings dataclass, parses arguments, and builds the settings.

    Of a field that holds an entry of a registry the options of the entry that the arguments choose
    are added: see :mod:`cavmae.common.registry`.

    Returns:
        the settings, and the values of all options.

    Raises:
        UsageError: see :func:`parse`, or there is no entry of a name.
    """
    _refuse_empty(arguments)
    others = _destinations(command_parser)
    chosen, rewritten = choose_entries(settings_class, arguments, others)
    command_parser.add_class_arguments(chosen)
    options = parse(command_parser, rewritten, checked=chosen is not settings_class)
    return fill(settings_class, options), options


def _refuse_empty(arguments: Sequence[str]) -> None:
    """Raises UsageError for an empty argument, which would name the current folder."""
    for number, argument in enumerate(arguments):
        option, equals, value = argument.partition("=")
        if argument and not (option.startswith("--") and equals and not value):
            continue
        before = option or (arguments[number - 1] if number else "")
        place = before if before.removeprefix("--") != before != "--" else "An argument"
        raise UsageError(f"{place} is empty, as of a variable that is not set: give a value.")


def _destinations(command_parser: ArgumentParser) -> set[str]:
    """Names of a command's options."""
    return {a.dest for a in command_parser._actions} - {"help", "config", "print_config"}


def parse(
    command_parser: ArgumentParser, arguments: Sequence[str], checked: bool = False
) -> Namespace:
    """Parses arguments, with dashes or underscores in options. Bad usage exits with 2.

    Args:
        checked: configurations are texts that were checked.

    Raises:
        UsageError: a configuration that :func:`check_config` refuses; a group of options with a
            value, in which jsonargparse would look for a class to import; a number that is NaN; see
            :func:`_refuse_empty`.
    """
    _refuse_empty(arguments)
    actions = command_parser._actions
    tables = {a.dest for a in actions if holds_tables(getattr(a, "_typehint", None))}
    options = OptionNames(_destinations(command_parser), tables)
    # jsonargparse requires a value for a bool; people write the option alone.
    flags = {a.dest for a in command_parser._actions if is_flag(a)}
    by_negation = {
        negated(f"--{flag}").removeprefix("--").replace("-", "_"): flag for flag in flags
    }
    normalised: list[str] = []
    for number, argument in enumerate(arguments):
        if argument == "--":
            normalised += arguments[number:]
            break
        name, equals, value = argument.partition("=")
        if name.startswith("--") and " " not in name:  # with a space it is some option's value
            option = name[2:].replace("-", "_")
            following = arguments[number + 1] if number + 1 < len(arguments) else ""
            argument = f"--{option}{equals}{value}"
            if option == "config" and not checked:
                check_config(value if equals else following, options)
            elif option in options.groups:
                raise UsageError(
                    f"{name} takes no value: give its options, such as "
                    f"--{options.first_of(option)}."
                )
            elif option in by_negation:
                if equals:
                    raise UsageError(f"{name} takes no value: leave ={value} out.")
                argument = f"--{by_negation[option]}=false"
            elif option in flags and not equals:
                argument += "" if following in ("true", "false") else "=true"
        normalised.append(argument)
    parsed = command_parser.parse_args(normalised)
    for option, setting in parsed.items():
        if isinstance(setting, float) and math.isnan(setting):
            raise UsageError(f"--{option} is not a number: give one.")
    return parsed


def fill(settings_class: type[Settings], options: Namespace) -> Settings:
    """Builds a settings dataclass, and nested ones, from parsed options of the same names."""
    return _filled(settings_class, options.as_dict())


def _filled(settings_class: type[Settings], values: dict[str, Any], place: str = "") -> Settings:
    fields: dict[str, Any] = {}
    types = get_type_hints(settings_class)
    for field in dataclasses.fields(settings_class):  # type: ignore[arg-type]
        value, kind = values[field.name], types[field.name]
        if (registry := registry_of(kind)) is not None:
            kind = registry.options(value["name"])
        if isinstance(kind, type) and dataclasses.is_dataclass(kind) and isinstance(value, dict):
            try:
                value = _filled(kind, value, f"{place}{field.name}.")
            except ValueError as error:  # of options that are checked where they are declared
                raise UsageError(f"{place}{field.name}: {error}") from error
        elif isinstance(field.default, tuple):
            value = tuple(value)
        fields[field.name] = value
    return settings_class(**fields)


def named_config(arguments: Sequence[str], folder: Path) -> list[str]:
    """Replaces ``--config NAME`` by the file of that name in the project's ``folder``.

    Raises:
        UsageError: there is no file and no configuration of that name.
    """
    resolved: list[str] = []
    for number, argument in enumerate(arguments):
        previous = arguments[number - 1] if number else ""
        option, equals, value = argument.partition("=")
        name = (
            value if option == "--config" and equals else argument if previous == "--config" else ""
        )
        if name and not Path(name).is_file():  # a folder `demo` is not the configuration `demo`
            path = folder / f"{name}.yaml"
            if not path.is_file():
                known = ", ".join(sorted(p.stem for p in folder.glob("*.yaml")))
                raise UsageError(
                    f"--config {name}: there is no such file; built-in configurations are {known}."
                )
            argument = f"--config={path}" if equals else str(path)
        resolved.append(argument)
    return resolved


def output(template: str, *values: Any) -> None:
    """Prints a result to standard output.

    Args:
        template: format string for ``%``; its line breaks stay.
        values: values of the template, printed with their control characters quoted.
    """
    text = visible(template % tuple(map(quoted, values)) if values else template, keep="\n\t")
    encoding = sys.stdout.encoding or "utf-8"
    # A terminal that cannot encode a character must not end the command.
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")


@contextlib.contextmanager
def _log_to_stderr() -> Iterator[None]:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(QuotingFormatter("%(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)


@contextlib.contextmanager
def stop_on_signals() -> Iterator[None]:
    """Turns SIGTERM and SIGHUP into KeyboardInterrupt: workers stop, finished work stays."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    previous = {signal.SIGTERM: signal.signal(signal.SIGTERM, interrupt)}
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as under nohup
        previous[signal.SIGHUP] = signal.signal(signal.SIGHUP, interrupt)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def run(
    command: Callable[[Sequence[str]], int | None], arguments: Sequence[str] | None = None
) -> int:
    """Runs a command and turns its errors into one sentence and an exit code.

    Returns:
        0: done, 1: the job failed, 2: bad usage.
    """
    limit_spinning()
    with _log_to_stderr():
        try:
            return command(sys.argv[1:] if arguments is None else arguments) or 0
        except UsageError as error:
            log.error("cavmae: %s", error)
            return 2
        except CavmaeError as error:
            log.error("cavmae: %s", error)
            return 1
        except BrokenPipeError:  # as in `cavmae check X | head`
            # The interpreter flushes standard output at exit.
            sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115
            return 0
        except KeyboardInterrupt:
            log.error("cavmae: interrupted; run the same command again to resume.")
            return 1
        except OSError as error:
            log.error("cavmae: %s", _sentence(error))
            return 1


def _sentence(error: OSError) -> str:
    if error.filename is None or error.strerror is None:
        return str(error)
    remedy = REMEDIES.get(error.errno or 0, "name another")
    return f"{error.filename2 or error.filename}: {error.strerror}; {remedy}."


def module_main(command: Callable[[Sequence[str]], Any]) -> None:
    """Runs a command as ``python -m cavmae.ROOM.MODULE``, and exits with its code."""
    sys.exit(run(command))
