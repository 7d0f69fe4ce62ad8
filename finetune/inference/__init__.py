"""Separation of recordings of any length; the public entry point is :class:`Separator`."""

from cavmae.finetune.inference.separator import Result, Separator
from cavmae.finetune.inference.settings import SeparateSettings
from cavmae.finetune.inference.target import Target

__all__ = ["Result", "SeparateSettings", "Separator", "Target"]
