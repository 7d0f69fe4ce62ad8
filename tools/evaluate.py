"""`cavmae evaluate SHARDS --model CHECKPOINT`: metrics of a speaker model or event classifier."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from cavmae.common.cli import module_main, parse_settings, parser
from cavmae.common.commands import import_object
from cavmae.common.errors import CavmaeError, UsageError
from cavmae.common.settings import DeviceSettings, LoaderSettings
from cavmae.finetune.events.config import Mode
from cavmae.finetune.models.box import model_source


@dataclasses.dataclass(frozen=True)
class SpeakerOptions:
    """Options of speaker models.

    Args:
        list: file of the scenes, written by `cavmae make-scenes` (speaker models).
        cue: give the model a cue of this kind for slot 0, and measure the cued person only (speaker
            models).
        hints: give the model the class of the cued person, ``model.classes`` of training (speaker
            models).
        references: also measure with blank, still or wrong video, and an oracle ratio mask (speaker
            models).
        people: CSV file with columns ``speaker`` and ``sex``, for separate metrics of pairs of the
            same and of different sex (speaker models).
    """

    list: str = ""
    cue: Literal["none", "box", "point", "mask", "voice"] = "none"
    hints: bool = False
    references: bool = True
    people: str | None = None


@dataclasses.dataclass(frozen=True)
class EventOptions:
    """Options of event classifiers.

    Args:
        mode: modalities that are used; ``missing_audio`` and ``missing_video`` are of a model that
            was fine-tuned on both; None: those of fine-tuning (event classifiers).
        frames: of a clip, evenly spaced, over which the probabilities of a model of one frame are
            averaged; 1: the middle one. A model of several frames takes its own number in one
            pass. None: as many as the model takes at once (event classifiers).
        labels: CSV file of the classes, as for `cavmae finetune events` (event classifiers).
    """

    mode: Mode | None = None
    frames: int | None = None
    labels: str | None = None

    def __post_init__(self) -> None:
        if self.frames is not None and self.frames < 1:
            raise UsageError(f"--frames {self.frames}: at least 1.")


@dataclasses.dataclass(frozen=True)
class EvaluateSettings(SpeakerOptions, EventOptions, LoaderSettings, DeviceSettings):
    """Options of the metrics.

    Args:
        model: checkpoint of `cavmae finetune speakers` or `cavmae finetune events`, or a name in
            the box (`cavmae models`) or on the hub.
        out: folder for the metrics as JSON and table, and for plots; None: the table is only
            printed.
    """

    model: str = ""
    out: str | None = None


class Kind(NamedTuple):
    """Evaluation of a type of models.

    Attributes:
        options: dataclass of the options that only this type has.
        measure: ``module:function`` that takes the shards and the settings.
    """

    options: type[Any]
    measure: str


# By the model_type of a checkpoint.
KINDS = {
    "speaker": Kind(SpeakerOptions, "cavmae.tools.evaluating.measure:measure"),
    "events": Kind(EventOptions, "cavmae.tools.evaluating.events:measure_events"),
}


def main(words: Sequence[str]) -> int:
    """Prints the metrics of a model on a data set.

    Raises:
        UsageError: an option is missing, or does not go with the others or the model.
        CavmaeError: the model, the list or the shards cannot be used.
    """
    cli = parser("evaluate", "Metrics of a speaker model or an event classifier.")
    cli.add_argument("shards", type=str, help="Folder or URL of the data set to measure on.")
    settings, options = parse_settings(cli, EvaluateSettings, words)
    if not settings.model:
        raise UsageError("Name the model to be measured: --model FOLDER.")
    from cavmae.pretrain.factory import type_of_model

    name = type_of_model(model_source(settings.model))
    if name not in KINDS:
        raise CavmaeError(
            f"{settings.model} is a model of the type {name!r}: name one of {', '.join(KINDS)}."
        )
    _check_options(settings, name)
    code: int = import_object(KINDS[name].measure)(options.shards, settings)
    return code


def _check_options(settings: EvaluateSettings, name: str) -> None:
    """Raises UsageError for an option that only other types of models have."""
    for other, kind in KINDS.items():
        for field in dataclasses.fields(kind.options):
            if other != name and getattr(settings, field.name) != field.default:
                raise UsageError(
                    f"--{field.name} is an option of models of the type {other!r}, and "
                    f"{settings.model} is of the type {name!r}: leave it out."
                )


if __name__ == "__main__":
    module_main(main)
