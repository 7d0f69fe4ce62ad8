"""Sphinx directives that document commands, registries and recipes from the program itself.

``commands GROUP``, ``finetuning-tasks``, ``benchmarks``, ``registries`` and ``recipes`` are read
from the parsers, dataclasses and YAML files of the installed package when the site is built, so
that the reference cannot differ from the program.
"""

import abc
import argparse
import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from docstring_parser import parse as parse_docstring
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from cavmae.common import cli
from cavmae.common.option_errors import negated
from cavmae.common.registry import Registry
from cavmae.finetune.laterals.settings import LATERALS
from cavmae.finetune.motion.settings import MOTION
from cavmae.finetune.separators.settings import FUSIONS, SEPARATORS
from cavmae.finetune.speaker.pixel_decoders.settings import PIXEL_DECODERS
from cavmae.finetune.train import TASKS
from cavmae.pretrain.temporal.settings import TEMPORAL
from cavmae.tools.bench import BENCHMARKS
from cavmae.tools.cli import COMMANDS, dispatch

ROOT = Path(__file__).resolve().parents[2]
REGISTRIES: dict[str, Registry[Any]] = {
    "--model.sound.separator": SEPARATORS,
    "--model.sound.separator.fusion": FUSIONS,
    "--model.temporal, --model.encoder.temporal": TEMPORAL,
    "--model.motion": MOTION,
    "--model.lateral": LATERALS,
    "--model.pixel-decoder": PIXEL_DECODERS,
}
RECIPES = {
    "pretrain": "pretrain/configs",
    "finetune speakers": "finetune/speaker/configs",
    "finetune events": "finetune/events/configs",
    "finetune separator": "finetune/separation/configs",
    "expand": "tools/expanding/configs",
}
ROLE = re.compile(r":\w+:`~?([^`]+)`")
OPTION = re.compile(r"(?<![\w-])--[a-z][\w.-]*\w")
UNSET = (None, argparse.SUPPRESS)


class _ParserBuilt(Exception):
    """Ends a command once its options are declared."""

    def __init__(self, parser: argparse.ArgumentParser):
        self.parser = parser


def parser_of(words: Sequence[str]) -> argparse.ArgumentParser:
    """Parser of a command with all of its options, without running the command."""

    def stop(parser: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        raise _ParserBuilt(parser)

    with mock.patch.object(cli._Parser, "parse_args", stop):
        try:
            dispatch(words)
        except _ParserBuilt as built:
            return built.parser
    raise RuntimeError(f"cavmae {' '.join(words)} declares no options.")


class _Reference(SphinxDirective):
    """Base of the directives: sections, texts and lists of options as nodes."""

    def run(self) -> list[nodes.Node]:
        """Nodes of the directive; the page is read anew by every build, as the program changes."""
        self.env.note_reread()
        return self.generate()

    @abc.abstractmethod
    def generate(self) -> list[nodes.Node]:
        """Nodes of the directive."""

    def help_text(self, source: str) -> list[nodes.Node]:
        """Paragraph of a help text or docstring."""
        words = ROLE.sub(r"``\1``", " ".join(source.split()))
        # Options are code, or their hyphens would become a dash.
        plain = words.split("`")
        plain[::2] = [OPTION.sub(r"`\g<0>`", part) for part in plain[::2]]
        words = "`".join(plain)
        words = words[:1].upper() + words[1:]
        inline, messages = self.parse_inline(words)
        return [nodes.paragraph("", "", *inline), *messages]

    def section(self, title: str, *children: nodes.Node) -> nodes.section:
        name = nodes.make_id(title)
        section = nodes.section("", nodes.title(title, title), *children, ids=[name], names=[name])
        self.state.document.note_explicit_target(section)
        return section

    def option_list(
        self, place: str, rows: Sequence[tuple[str, str, str]]
    ) -> nodes.definition_list:
        """Definition list of (name, remark on type and default, help)."""
        items = []
        for name, remark, text in rows:
            term = nodes.term("", "", nodes.literal(name, name), nodes.Text(f"  {remark}"))
            term["ids"] = [nodes.make_id(f"{place} {name.split(',')[0].strip('-')}")]
            term["classes"] = ["option"]
            items.append(
                nodes.definition_list_item("", term, nodes.definition("", *self.help_text(text)))
            )
        return nodes.definition_list("", *items)

    def command(self, words: Sequence[str], module: str) -> nodes.section:
        """Section of a command: purpose, usage, options in their groups."""
        title = " ".join(words)
        parser = parser_of(words)
        operands = [a for a in parser._actions if not a.option_strings]
        required = [a for a in parser._actions if a.option_strings and _required(a, parser)]
        usage = " ".join(
            ["cavmae", title, *map(_operand, operands)]
            + [f"--{_spelled(a.dest)} {a.dest.upper()}" for a in required]
            + ["[OPTIONS]"]
        )
        section = self.section(
            f"cavmae {title}",
            *self.help_text(parser.description or ""),
            nodes.literal_block(usage, usage, language="text"),
        )
        if module:
            section += self.help_text(f"Also `python -m {module}`.")
        section.extend(self._groups(title, parser))
        return section

    def _groups(self, title: str, parser: argparse.ArgumentParser) -> Iterator[nodes.Node]:
        for group in parser._action_groups:
            rows = [row for action in group._group_actions if (row := _row(action, parser))]
            if not rows:
                continue
            if group.title and ":" not in group.title and group.title not in _PLAIN:
                heading = group.title[0].upper() + group.title[1:].rstrip(".")
                yield nodes.rubric("", "", *self.parse_inline(heading)[0])
            yield self.option_list(title, rows)


_PLAIN = {"positional arguments", "options", "optional arguments"}


def _spelled(option: str) -> str:
    return option.replace("_", "-")


def _operand(action: argparse.Action) -> str:
    name = str(action.metavar or action.dest.upper())
    return f"{name}..." if action.nargs in ("*", "+") else name


def _required(action: argparse.Action, parser: Any) -> bool:
    return action.required or action.dest in getattr(parser, "required_args", ())


def _row(action: argparse.Action, parser: Any) -> tuple[str, str, str] | None:
    """Name, remark and help of an option; None for those of every command."""
    if action.dest in ("help", "config", "print_config") or action.help in UNSET:
        return None
    if type(action).__name__ == "_ActionConfigLoad":  # a group of options, which takes no value
        return None
    name = _spelled(action.dest)
    if not action.option_strings:
        return str(action.metavar or action.dest), "", action.help or ""
    kind = getattr(action, "_typehint", None)
    remarks = []
    if kind is bool:
        name = f"--{name}, {negated(f'--{name}')}"
    else:
        name = f"--{name}"
        remarks.append(_kind(kind))
    if _required(action, parser):
        remarks.append("required")
    elif action.default not in UNSET:
        remarks.append(f"default {_default_text(action.default)}")
    return name, ", ".join(filter(None, remarks)), action.help or ""


def _kind(kind: Any) -> str:
    """Type of an option in words of the command line."""
    text = kind.__name__ if isinstance(kind, type) else str(kind)
    text = text.replace("typing.", "").replace("pathlib.", "")
    text = re.sub(r"Optional\[(.*)\]$", r"\1", text).replace(" | None", "")
    choices = re.fullmatch(r"Literal\[(.*)\]", text)
    if choices:
        return choices[1].replace("'", "").replace(", ", " | ")
    names = {"str": "text", "int": "integer", "float": "number", "None": "", "NoneType": ""}
    return names.get(text, re.sub(r"^(tuple|list)\[.*\]$", r"\1", text))


def _default_text(default: Any) -> str:
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, tuple | list):
        return "[" + ", ".join(map(_default_text, default)) + "]"
    return str(default) if default != "" else "empty"


class Commands(_Reference):
    """Commands of a group of the program's listing."""

    required_arguments = 1

    def generate(self) -> list[nodes.Node]:
        group = self.arguments[0]
        rows = {name: row for name, row in COMMANDS.items() if row.group == group}
        assert rows, f"no command is of the group {group}"
        return [
            self.command([name], row.module)
            for name, row in rows.items()
            if name not in ("finetune", "bench")
        ]


class FinetuningTasks(_Reference):
    """Tasks of ``cavmae finetune``."""

    def generate(self) -> list[nodes.Node]:
        return [self.command(["finetune", name], "") for name in TASKS]


class Benchmarks(_Reference):
    """Benchmarks of ``cavmae bench``."""

    def generate(self) -> list[nodes.Node]:
        return [self.command(["bench", name], "") for name in BENCHMARKS]


class Listing(_Reference):
    """Commands with their purposes, as ``cavmae --help`` groups them."""

    def generate(self) -> list[nodes.Node]:
        result: list[nodes.Node] = []
        for group in dict.fromkeys(row.group for row in COMMANDS.values()):
            result.append(nodes.rubric("", group))
            rows = [(f"cavmae {n}", "", r.purpose) for n, r in COMMANDS.items() if r.group == group]
            result.append(self.option_list("listing", rows))
        return result


class Registries(_Reference):
    """Entries of every registry, with their options."""

    def generate(self) -> list[nodes.Node]:
        sections = []
        for option, registry in REGISTRIES.items():
            section = self.section(f"{registry.kind.capitalize()}s")
            section += self.help_text(f"`{option} NAME`")
            for name in registry:
                section.extend(self.entry(registry, name))
            sections.append(section)
        return sections

    def entry(self, registry: Registry[Any], name: str) -> list[nodes.Node]:
        options = registry.options(name)
        doc = parse_docstring(options.__doc__ or "")
        described = {parameter.arg_name: parameter.description or "" for parameter in doc.params}
        rows = []
        for field in dataclasses.fields(options):
            default = field.default
            if dataclasses.is_dataclass(default):
                remark = f"default {default.name}"  # type: ignore[union-attr]
            else:
                remark = f"default {_default_text(default)}"
            text = described.get(field.name) or _inherited(options, field.name)
            rows.append((_spelled(field.name), remark, text))
        heading = nodes.rubric("", "", nodes.literal(name, name))
        content = [heading, *self.help_text(doc.short_description or "")]
        return [*content, self.option_list(f"{registry.kind} {name}", rows)] if rows else content


def _inherited(options: type, name: str) -> str:
    """Description of a field in the docstring of the class that declares it."""
    for base in options.__mro__[1:]:
        for parameter in parse_docstring(base.__doc__ or "").params:
            if parameter.arg_name == name:
                return parameter.description or ""
    return ""


class Recipes(_Reference):
    """Built-in configurations, with the comment that each begins with."""

    def generate(self) -> list[nodes.Node]:
        sections = []
        for command, folder in RECIPES.items():
            section = self.section(f"Recipes of cavmae {command}")
            for path in sorted((ROOT / folder).glob("*.yaml")):
                source = path.read_text()
                comment = re.match(r"(?:#.*\n)*", source)
                text = comment[0].replace("#", "") if comment else ""
                section += nodes.rubric("", "", nodes.literal("", f"--config {path.stem}"))
                section.extend(self.help_text(text) if text.strip() else [])
                settings = source[len(comment[0]) if comment else 0 :].strip()
                section += nodes.literal_block(settings, settings, language="yaml")
            sections.append(section)
        return sections


def setup(app: Sphinx) -> dict[str, Any]:
    """Registers the directives."""
    for name, directive in {
        "commands": Commands, "finetuning-tasks": FinetuningTasks, "benchmarks": Benchmarks,
        "command-listing": Listing, "registries": Registries, "recipes": Recipes,
    }.items():  # fmt: skip
        app.add_directive(name, directive)
    return {"parallel_read_safe": True}
