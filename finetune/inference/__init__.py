"""Separation of recordings of any length: the public :class:`Separator` and what it is made of."""

from cavmae.finetune.inference.separator import Result, Separator
from cavmae.finetune.inference.settings import SeparateSettings
from cavmae.finetune.inference.target import Target

__all__ = ["Result", "SeparateSettings", "Separator", "Target"]
