"""Event classifiers for inference: their preprocessing, modes, frames, and averaged weights."""

from cavmae.common.errors import CavmaeError, UsageError
from cavmae.common.json_files import typed
from cavmae.datasets.stream.transforms import DeviceTransform
from cavmae.finetune.events.conditions import NOT_AVERAGED
from cavmae.finetune.events.config import EventConfig, Mode
from cavmae.finetune.events.factory import load_events, preprocessing_of
from cavmae.finetune.events.model import uses_video
from cavmae.finetune.events.task import EventTask
from cavmae.finetune.models.box import model_source
from cavmae.pretrain.factory import read_preprocessing

# Figures of an evaluation by their names in its record, with their labels.
FIGURES = {"mean_ap": "mAP", "auc": "AUC", "d_prime": "d'", "accuracy": "accuracy"}


def load_task(name: str) -> EventTask:
    """Classifier of a folder or of a name in the box or on the hub, with its preprocessing.

    Raises:
        CavmaeError: it is missing, damaged, or of another kind.
    """
    model = load_events(name)
    statistics, padding = preprocessing_of(model_source(name), "zero")
    return EventTask(model, DeviceTransform(statistics, padding=padding))


def checked_mode(mode: Mode | None, config: EventConfig) -> Mode:
    """Mode of an evaluation; None: the modalities of fine-tuning.

    Raises:
        UsageError: the model was fine-tuned on one modality, and the mode needs others.
    """
    if mode is None:
        return config.modalities
    if config.modalities not in ("multimodal", mode):
        raise UsageError(
            f"--mode {mode}: the model was fine-tuned {config.modalities}; leave it out."
        )
    return mode


def checked_frames(frames: int | None, mode: Mode, config: EventConfig) -> int:
    """Number of frames of a clip in an evaluation; None: as many as the model takes at once.

    Raises:
        UsageError: several frames for a mode without video, or not the number of a model that takes
            several at once.
    """
    own = config.encoder.frames
    if frames is None:
        return own
    if frames > 1 and not uses_video(mode):
        raise UsageError(f"--frames {frames}: the mode {mode} takes no frames.")
    if own not in (1, frames) and uses_video(mode):
        raise UsageError(
            f"--frames {frames}: the model takes {own} frames of a clip in one pass; leave it out."
        )
    return frames


def weights_text(name: str) -> str:
    """Averaging window of the weights of a model.

    Raises:
        CavmaeError: the file beside the weights is damaged.
    """
    record = read_preprocessing(model_source(name))
    if record is None:
        return "as published"
    if "averaging" not in record:
        return NOT_AVERAGED
    try:
        averaging = typed(record, "averaging", dict)
        if "ema" in averaging:
            return f"moving average, decay {typed(averaging, 'ema', float):g}"
        first, last = typed(averaging, "first_epoch", int), typed(averaging, "last_epoch", int)
    except ValueError as error:
        raise CavmaeError(
            f"The preprocessing.json of {name} is damaged ({error}): copy it again."
        ) from error
    return f"mean after epochs {first} to {last}"
