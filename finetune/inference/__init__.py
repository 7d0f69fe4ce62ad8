"""Recordings of any length: their separation (:class:`Separator`) and events (EventPredictor).

The names are imported when they are first used, since settings are read without PyTorch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cavmae.finetune.inference.event_predictor import EventPrediction, EventPredictor
    from cavmae.finetune.inference.event_settings import PredictSettings
    from cavmae.finetune.inference.result_arrays import SeparatedArrays
    from cavmae.finetune.inference.result_files import SeparatedFiles
    from cavmae.finetune.inference.separator import Separator
    from cavmae.finetune.inference.settings import SeparateSettings, Thresholds
    from cavmae.finetune.inference.target import Target

__all__ = [
    "EventPrediction", "EventPredictor", "PredictSettings", "SeparateSettings",
    "SeparatedArrays", "SeparatedFiles", "Separator", "Target", "Thresholds",
]  # fmt: skip
_MODULES = {
    "EventPrediction": "event_predictor", "EventPredictor": "event_predictor",
    "PredictSettings": "event_settings",
    "SeparateSettings": "settings", "SeparatedArrays": "result_arrays",
    "SeparatedFiles": "result_files", "Separator": "separator", "Target": "target",
    "Thresholds": "settings",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
