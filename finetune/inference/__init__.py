"""Separation of recordings of any length; the public entry point is :class:`Separator`."""

from cavmae.finetune.inference.result_arrays import SeparatedArrays
from cavmae.finetune.inference.result_files import SeparatedFiles
from cavmae.finetune.inference.separator import Separator
from cavmae.finetune.inference.settings import SeparateSettings, Thresholds
from cavmae.finetune.inference.target import Target

__all__ = [
    "SeparateSettings", "SeparatedArrays", "SeparatedFiles", "Separator", "Target", "Thresholds",
]  # fmt: skip
