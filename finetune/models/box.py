"""Models in the box by name: their folders, and the one that is used without a name."""

import difflib
import os
from pathlib import Path
from typing import NamedTuple

from cavmae.common.errors import CavmaeError, UsageError
from cavmae.pretrain.engine.about import About, read_facts
from cavmae.pretrain.engine.model_files import COMPLETE, CONFIG

BOX = Path(__file__).parent
REMEDY = "install cavmae again"


class BoxedModel(NamedTuple):
    """Model in the box.

    Attributes:
        name: of its folder.
        folder: with the files of the model.
        model_type: of its class.
        about: facts about it.
    """

    name: str
    folder: Path
    model_type: str
    about: About


def boxed_models() -> list[BoxedModel]:
    """Models in the box, sorted by name.

    Raises:
        CavmaeError: one of them is damaged, or has no hashes that vouch for its files.
    """
    return [_boxed(path.parent) for path in sorted(BOX.glob(f"*/{CONFIG}"))]


def _boxed(folder: Path) -> BoxedModel:
    # Elsewhere a model may come without hashes; an installation that lost them is broken.
    if not (folder / COMPLETE).is_file():
        raise CavmaeError(f"{folder / COMPLETE} is missing: {REMEDY}.")
    try:
        return BoxedModel(folder.name, folder, *read_facts(folder, REMEDY))
    except ValueError as error:
        raise CavmaeError(f"{folder / CONFIG} is damaged ({error}): {REMEDY}.") from error


def model_source(name: str) -> str:
    """Resolves the name of a model: a folder that holds one, a name in the box, a name on the hub.

    Returns:
        folder of the model in the box; any other name unchanged.

    Raises:
        UsageError: a folder of that name holds a model, and the box has one of that name, too; or
            nothing has that name, and a model in the box a similar one.
        CavmaeError: the model in the box is damaged.
    """
    boxed = BOX / name
    if Path(name).name != name or not (boxed / CONFIG).is_file():
        unknown = Path(name).name == name and not os.path.lexists(name)
        names = [model.name for model in boxed_models()] if unknown else []
        if near := difflib.get_close_matches(name, names, 1):
            raise UsageError(
                f"There is no model {name}: did you mean {near[0]}, which is in the box?"
            )
        return name
    if (Path(name) / CONFIG).is_file():
        raise UsageError(
            f"The model {name} is ambiguous, a folder here and a name in the box: write ./{name} "
            "for the folder, or run the command elsewhere for the model in the box."
        )
    return str(_boxed(boxed).folder)


def default_speaker_model() -> str:
    """Name of the only speaker model in the box.

    Raises:
        UsageError: there is none, or there are several.
        CavmaeError: a model in the box is damaged.
    """
    names = [model.name for model in boxed_models() if model.model_type == "speaker"]
    if not names:
        raise UsageError(
            "This version of cavmae comes without a speaker model: name one with --model, a "
            "checkpoint of `cavmae finetune speakers` or a model on the hub."
        )
    if len(names) > 1:
        raise UsageError(
            f"This version of cavmae comes with {len(names)} speaker models: name one of "
            f"{', '.join(names)} with --model."
        )
    return names[0]
