"""Models in folders and on the hub: verified, then loaded completely."""

import contextlib
import inspect
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from torch import nn

from cavmae.common.errors import CavmaeError, UsageError
from cavmae.common.json_files import read_json, value_as
from cavmae.common.registry import plain
from cavmae.pretrain.engine.checkpoints import (
    COMPLETE,
    CONFIG,
    MODEL_FILES,
    PREPROCESSING,
    WEIGHTS,
    verify_model,
)
from cavmae.pretrain.engine.tensor_files import read_tensors

Own = TypeVar("Own", bound="HubWeights")


class HubWeights(nn.Module, PyTorchModelHubMixin):
    """``from_pretrained``, ``save_pretrained``, ``push_to_hub``: all weights are loaded or none."""

    def config_values(self) -> dict[str, Any]:
        """Content of ``config.json``: the arguments of the constructor."""
        (name,) = list(inspect.signature(type(self).__init__).parameters)[1:]
        return {name: plain(self.config)}

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
        """Writes ``model.safetensors``, ``config.json`` and a card; see the mixin."""
        # What a COMPLETE there says is not true of the files that are written now.
        (Path(save_directory) / COMPLETE).unlink(missing_ok=True)
        saved: str | None = super().save_pretrained(
            save_directory, config=self.config_values(), **options
        )
        return saved

    @classmethod
    def from_pretrained(
        cls: type[Own], pretrained_model_name_or_path: str | Path, **options: Any
    ) -> Own:
        """Model of a folder, or of a name on the hub, in evaluation mode on the CPU.

        Where a ``COMPLETE`` lies with the files, they have to be what it says.

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
        arguments = _arguments(cls, folder / CONFIG, remedy)
        weights = read_tensors(folder / WEIGHTS, remedy)
        # Compared before memory is spent on what a configuration may ask for.
        _shell(cls, arguments, folder / CONFIG, remedy).load_state_dict(
            {name: value.to("meta") for name, value in weights.items()}
        )
        model = cls(**arguments)
        model.load_state_dict(weights)
        return model.eval()


def _shell(cls: type[Own], arguments: dict[str, Any], path: Path, remedy: str) -> Own:
    """Model on the meta device, without memory for its weights.

    Raises:
        CavmaeError: the configuration makes no model.
    """
    try:
        with torch.device("meta"):
            return cls(**arguments)
    except (ValueError, TypeError, ArithmeticError, LookupError, RuntimeError, UsageError) as error:
        raise _unknown(path, error, remedy) from error


def model_folder(name: str, **options: Any) -> Path:
    """Folder of a model's files; those of a model on the hub are downloaded first.

    Raises:
        OSError, ValueError: there is no such model (the exceptions of ``huggingface_hub``).
    """
    if Path(name).is_dir():
        return Path(name)
    for file in MODEL_FILES:
        folder = Path(hf_hub_download(name, file, **options)).parent
    for file in (COMPLETE, PREPROCESSING):
        with contextlib.suppress(EntryNotFoundError, LocalEntryNotFoundError):
            hf_hub_download(name, file, **options)
    return folder


def _arguments(cls: type[HubWeights], path: Path, remedy: str) -> dict[str, Any]:
    """Arguments of a model's constructor, out of its configuration.

    Raises:
        CavmaeError: it is damaged, or of another version.
    """
    try:
        record = read_json(path, remedy=remedy)
        if not isinstance(record, dict):
            raise ValueError(f"a {type(record).__name__}, not an object")
        arguments = {}
        for name, parameter in list(inspect.signature(cls.__init__).parameters.items())[1:]:
            if name not in record:
                raise ValueError(f"field {name} is missing")
            arguments[name] = value_as(parameter.annotation, record[name], name)
        return arguments
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path} is missing") from error
    except ValueError as error:
        raise _unknown(path, error, remedy) from error


def _unknown(config: Path, error: Exception, remedy: str) -> CavmaeError:
    return CavmaeError(
        f"{config.parent} is no folder of weights that this version of cavmae knows "
        f"({config.name}: {error}): {remedy}, or use the version that wrote it."
    )
