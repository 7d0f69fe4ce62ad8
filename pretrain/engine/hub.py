"""Models in folders and on the hub: verified, then loaded completely."""

import contextlib
import dataclasses
import json
import re
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from cavmae.common.errors import CavmaeError, UsageError
from cavmae.common.json_files import read_json, typed, value_as
from cavmae.common.registry import to_json_value
from cavmae.pretrain.engine.about import About, read_facts, take_about
from cavmae.pretrain.engine.checkpoints import complete_checkpoints
from cavmae.pretrain.engine.model_files import (
    COMPLETE,
    CONFIG,
    MODEL_FILES,
    PREPROCESSING,
    WEIGHTS,
    verify_model,
)
from cavmae.pretrain.engine.tensor_files import read_tensors

Own = TypeVar("Own", bound="HubWeights")
HUB_NAME = re.compile(r"(?!\.{1,2}/)[\w.-]+/[\w.-]+", re.ASCII)
LONGEST_VALUE = 120  # characters of a field in a message


class HubWeights(nn.Module, PyTorchModelHubMixin):
    """``from_pretrained``, ``save_pretrained``, ``push_to_hub``: all weights are loaded or none.

    ``config.json`` holds the fields of ``config``, which builds the model, and ``model_type``.

    Args:
        config: of the class ``config_class``.

    Attributes:
        model_type: name of the class in ``config.json``.
        config_class: dataclass of the configuration.
        about: facts about the weights that were loaded; further training makes them untrue, so that
            they are not saved again.
    """

    model_type: ClassVar[str]
    config_class: ClassVar[type]
    config: Any
    about: About = About()

    def config_values(self) -> dict[str, Any]:
        """Content of ``config.json``."""
        return {"model_type": self.model_type, **to_json_value(self.config)}

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
        """Writes ``model.safetensors``, ``config.json`` and a card; see the mixin."""
        # What a COMPLETE there says is not true of the files that are written now.
        (Path(save_directory) / COMPLETE).unlink(missing_ok=True)
        options["config"] = self.config_values()
        saved: str | None = super().save_pretrained(save_directory, **options)
        return saved

    @classmethod
    def from_pretrained(
        cls: type[Own], pretrained_model_name_or_path: str | Path, **options: Any
    ) -> Own:
        """Model of a folder, or of a name on the hub, in evaluation mode on the CPU.

        Where a ``COMPLETE`` lies with the files, they have to be what it says. Weights in half
        precision are widened to the types of the model's parameters.

        Args:
            pretrained_model_name_or_path: folder, or name on the hub.
            options: of ``hf_hub_download``, such as ``revision`` or ``token``.

        Raises:
            CavmaeError: a file is missing, altered, damaged, or of another version.
            RuntimeError: the weights are not those of the configuration.
            OSError, ValueError: there is no such model (the exceptions of ``huggingface_hub``).
        """
        folder = model_folder(str(pretrained_model_name_or_path), **options)
        verify_model(folder)
        remedy = f"fetch a sound copy of {folder}"
        config, about = _config(cls, folder / CONFIG, remedy)
        weights = read_tensors(folder / WEIGHTS, remedy, mapped=False)
        # No memory is spent on what a configuration may ask for, nor on weights for a second time.
        model = _shell(cls, config, folder / CONFIG, remedy)
        types = {name: value.dtype for name, value in model.state_dict().items()}
        for name in weights:
            weights[name] = weights[name].to(dtype=types.get(name))
        model.load_state_dict(weights, assign=True)
        # A constant that its module makes of an empty tensor is missing in a shell.
        if any(value.is_meta for value in model.buffers()):
            model = cls(config)
            model.load_state_dict(weights)
        model.about = about
        return model.eval()


class _EmptyOnMeta(TorchFunctionMode):
    """Puts the weights that modules allocate on the meta device, and does not initialise them.

    With that device as the default, the constants that constructors compute would lie there, too.
    Arithmetic there imports PyTorch's compiler, which takes a second at the start of a command.
    """

    def __torch_function__(
        self, function: Any, types: Any, arguments: Any = (), keywords: Any = None
    ) -> Any:
        keywords = dict(keywords or {})
        if function is torch.empty:
            keywords["device"] = "meta"
        elif getattr(function, "__module__", "") == nn.init.__name__ or "out" in keywords:
            named = keywords.get("out", keywords.get("tensor"))
            changed: Tensor = arguments[0] if named is None else named
            if changed.is_meta:
                return changed
        return function(*arguments, **keywords)


def _shell(cls: type[Own], config: Any, path: Path, remedy: str) -> Own:
    """Model without memory for its weights.

    Raises:
        CavmaeError: the configuration makes no model.
    """
    try:
        with torch.random.fork_rng(devices=[]), _EmptyOnMeta():
            return cls(config)
    except (ValueError, TypeError, ArithmeticError, LookupError, RuntimeError, UsageError) as error:
        raise _unknown(path, error, remedy) from error


def check_same_model(model: HubWeights, folder: Path) -> None:
    """Checks that a checkpoint is of a model with the same configuration.

    Weights of equal shapes may mean something else, as the rows of a head whose classes have
    another order.

    Raises:
        CavmaeError: a field differs, or the configuration is damaged.
    """
    config, _ = _config(type(model), folder / CONFIG, "go on from the checkpoint before it")
    for field in dataclasses.fields(model.config):
        before, now = (to_json_value(getattr(c, field.name)) for c in (config, model.config))
        if before != now:
            raise CavmaeError(
                f"{folder} is of a model whose {field.name} is {_short(before)}, not "
                f"{_short(now)}: keep the settings and the data of its run, or start a new one "
                "from its weights."
            )


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}..."


def model_folder(name: str, **options: Any) -> Path:
    """Folder of a model's files; those of a model on the hub are downloaded first.

    Raises:
        CavmaeError: it is the folder of a run, whose models are its checkpoints.
        OSError, ValueError: there is no such folder, and no such model on the hub (the exceptions
            of ``huggingface_hub``).
    """
    if (folder := Path(name)).is_dir():
        if not (folder / CONFIG).exists() and (checkpoints := complete_checkpoints(folder)):
            raise CavmaeError(
                f"{name} is the folder of a run: name one of its checkpoints, such as "
                f"{checkpoints[-1]}."
            )
        return folder
    if not HUB_NAME.fullmatch(name):
        raise FileNotFoundError("there is no such folder, and names there are OWNER/NAME")
    for file in MODEL_FILES:
        folder = Path(hf_hub_download(name, file, **options)).parent
    for file in (COMPLETE, PREPROCESSING):
        with contextlib.suppress(EntryNotFoundError, LocalEntryNotFoundError):
            hf_hub_download(name, file, **options)
    return folder


def model_type_of(folder: Path, remedy: str) -> str:
    """Type of the model in a folder, the ``model_type`` of a class.

    Raises:
        CavmaeError: its configuration is missing, damaged, or of another version.
    """
    try:
        return read_facts(folder, remedy)[0]
    except FileNotFoundError as error:
        raise CavmaeError(
            f"{folder} is no folder of weights, since it has no {CONFIG}: {remedy}."
        ) from error
    except ValueError as error:
        raise _unknown(folder / CONFIG, error, remedy) from error


def _config(cls: type[HubWeights], path: Path, remedy: str) -> tuple[Any, About]:
    """Configuration of a model, and facts about it.

    Raises:
        CavmaeError: it is damaged, of another version, or of another class of models.
    """
    try:
        record = read_json(path, remedy=remedy)
        kind = typed(record, "model_type", str)
        if kind != cls.model_type:
            raise CavmaeError(
                f"{path.parent} is a model of the type {kind!r}, not {cls.model_type!r}: name a "
                f"folder of the latter."
            )
        del record["model_type"]
        about = take_about(record)
        return value_as(cls.config_class, record, "config"), about
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path} is missing") from error
    except ValueError as error:
        raise _unknown(path, error, remedy) from error


def _unknown(config: Path, error: Exception, remedy: str) -> CavmaeError:
    return CavmaeError(
        f"{config.parent} is no folder of weights that this version of cavmae knows "
        f"({config.name}: {error}): {remedy}, or use the version that wrote it."
    )
