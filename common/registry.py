"""Registries: parts that come in kinds, each chosen by name, with a dataclass of its own options.

The options of every entry are declared in a module that imports no PyTorch, so that the command
line lists them at once; the class that they build is imported when it is built::

    @dataclasses.dataclass(frozen=True)
    class SeparatorOptions(Options):
        \"\"\"Options of a separator.\"\"\"

    SEPARATORS = Registry("separator", SeparatorOptions)

    @SEPARATORS.register("unet", "cavmae.finetune.separators.unet:ComplexUNet")
    @dataclasses.dataclass(frozen=True)
    class UNetOptions(SeparatorOptions):
        width: int = 32

A dataclass field ``separator: SeparatorOptions = UNetOptions()`` is set by
``--model.separator NAME`` and ``--model.separator.width 24``, and is saved as
``{"name": "unet", "width": 24}``.
"""

import dataclasses
import difflib
import importlib
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Generic, TypeVar

Entry = TypeVar("Entry", bound="Options")


@dataclasses.dataclass(frozen=True)
class Options:
    """Base of the options of a registry's entries.

    Attributes:
        registry: that the entry belongs to.
        name: of the entry; None: the base of a registry.
    """

    registry: ClassVar["Registry[Any]"]
    name: ClassVar[str | None] = None


class Registry(Generic[Entry]):
    """Entries of one kind by name, in the order of their registration.

    Args:
        kind: in messages, such as ``separator``.
        base: of the options of all entries.
    """

    def __init__(self, kind: str, base: type[Entry]):
        self.kind = kind
        self.base = base
        self._entries: dict[str, tuple[type[Entry], str | type]] = {}
        base.registry = self

    def register(self, name: str, target: str | type) -> Callable[[type[Entry]], type[Entry]]:
        """Decorator that adds an entry.

        Args:
            name: of the entry, unique in the registry.
            target: class that is called with the options first, or ``module:Class``, imported when
                it is built.
        """
        if name in self._entries:
            raise ValueError(f"There already is a {self.kind} {name!r}.")

        def add(options: type[Entry]) -> type[Entry]:
            options.name = name
            self._entries[name] = options, target
            return options

        return add

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def options(self, name: str) -> type[Entry]:
        """Class of the options of an entry.

        Raises:
            ValueError: there is no such entry; the message names those that there are.
        """
        if name not in self._entries:
            similar = difflib.get_close_matches(name, self._entries, 1)
            raise ValueError(
                f"there is no {self.kind} {name[:100]!r}"
                f"{f' (is {similar[0]} meant?)' if similar else ''}; there are "
                f"{', '.join(self)}"
            )
        return self._entries[name][0]

    def build(self, options: Entry, *arguments: Any, **keywords: Any) -> Any:
        """Object of the entry that the options belong to.

        Args:
            options: first argument of the class; the others follow it.
        """
        assert options.name is not None, f"{type(options).__name__} is not registered"
        target = self._entries[options.name][1]
        if isinstance(target, str):
            module, _, attribute = target.partition(":")
            target = getattr(importlib.import_module(module), attribute)
        return target(options, *arguments, **keywords)


def registry_of(kind: Any) -> Registry[Any] | None:
    """Registry whose entries a field of a type holds; None: the type is not such a base."""
    registry = getattr(kind, "registry", None)
    return registry if isinstance(registry, Registry) and registry.base is kind else None


def to_json_value(value: Any) -> Any:
    """Value for JSON: dataclasses become objects, entries of a registry with their ``name``."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        named = {"name": value.name} if isinstance(value, Options) else {}
        fields = dataclasses.fields(value)
        return named | {field.name: to_json_value(getattr(value, field.name)) for field in fields}
    if isinstance(value, list | tuple):
        return [to_json_value(part) for part in value]
    return value
