"""Hash of the weights that metrics were measured on."""

from cavmae.common.files import sha256_of
from cavmae.finetune.models.box import model_source
from cavmae.pretrain.engine.hub import model_folder
from cavmae.pretrain.engine.model_files import WEIGHTS


def weights_sha256(name: str) -> str:
    """Hash of a model's file of weights, which says what figures were measured on.

    Args:
        name: folder, or name in the box or on the hub.

    Raises:
        OSError, ValueError: there is no such model on the hub.
    """
    return sha256_of(model_folder(model_source(name)) / WEIGHTS)
