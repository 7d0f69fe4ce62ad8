"""Command line: parsing, exit codes and messages of every command."""

import contextlib
import dataclasses
import logging
import math
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from jsonargparse import ArgumentParser, Namespace

from cavmae.common.config_files import Options, check_config
from cavmae.common.errors import CavmaeError, UsageError
from cavmae.common.quoting import QuotingFormatter, quoted, visible

log = logging.getLogger("cavmae")
Settings = TypeVar("Settings")


class _Parser(ArgumentParser):
    """Argument parser that quotes control characters in its error messages."""

    def error(self, message: str, ex: Exception | None = None) -> None:
        super().error(visible(message, keep="\n"), ex)


def parser(command: str, description: str) -> ArgumentParser:
    """Argument parser of a command, with ``--config FILE`` and ``--print_config``."""
    command_parser = _Parser(prog=f"cavmae {command}", description=description, allow_abbrev=False)
    command_parser.add_argument(
        "--config", action="config", help="YAML file with values for the options below."
    )
    return command_parser


def parse(command_parser: ArgumentParser, arguments: Sequence[str]) -> Namespace:
    """Parses arguments, with dashes or underscores in options. Bad usage exits with 2.

    Raises:
        UsageError: a configuration that :func:`check_config` refuses; a group of options with a
            value, in which jsonargparse would look for a class to import; a number that is NaN.
    """
    options = Options(
        {a.dest for a in command_parser._actions} - {"help", "config", "print_config"}
    )
    # jsonargparse requires a value for a bool; people write the option alone.
    flags = {a.dest for a in command_parser._actions if getattr(a, "_typehint", None) is bool}
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
            if option == "config":
                check_config(value if equals else following, options)
            elif option in options.groups:
                raise UsageError(
                    f"{name} takes no value: give its options, such as "
                    f"--{options.first_of(option)}."
                )
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


def _filled(settings_class: type[Settings], values: dict[str, Any]) -> Settings:
    fields = {}
    for field in dataclasses.fields(settings_class):  # type: ignore[arg-type]
        value, default = values[field.name], field.default
        if dataclasses.is_dataclass(default) and isinstance(value, dict):
            value = _filled(type(default), value)
        elif isinstance(default, tuple):
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
            log.error("cavmae: %s", error)
            return 1


def module_main(command: Callable[[Sequence[str]], Any]) -> None:
    """Runs a command as ``python -m cavmae.ROOM.MODULE``, and exits with its code."""
    sys.exit(run(command))
