"""Loading of a sound separator by name: alone, or as the part of a speaker model."""

from cavmae.common.errors import CavmaeError
from cavmae.finetune.models.box import model_source
from cavmae.finetune.separation.model import SoundSeparator
from cavmae.pretrain.factory import load_hub, type_of_model

REMEDY = "make one with `cavmae finetune separator`"


def load_sound(name: str) -> SoundSeparator:
    """Load a sound separator, or that of a speaker model.

    Args:
        name: folder of a checkpoint of `cavmae finetune separator` or `cavmae finetune speakers`,
            or a model in the box or on the hub.

    Raises:
        CavmaeError: the checkpoint is missing, damaged, or of another kind of model.
    """
    # Speaker models contain sound separators, so this module cannot import them at its top.
    from cavmae.finetune.speaker.model import SpeakerModel

    source = model_source(name)
    try:
        model_type = type_of_model(source)
    except CavmaeError:  # loading says what is wrong, and which command makes a model
        model_type = SoundSeparator.model_type
    if model_type == SpeakerModel.model_type:
        return load_hub(SpeakerModel, source, REMEDY).sound
    return load_hub(SoundSeparator, source, REMEDY)
