"""Log line of a run: settings of a model that the weights of ``model.init_from`` replace."""

import dataclasses
import logging
from typing import Any

from cavmae.common.registry import to_json_value

log = logging.getLogger("cavmae")
NOT_USED = "The model is that of model.init_from: its own values count for %s."


def report_unused_settings(settings: Any, config: Any) -> None:
    """Log the settings of a model, as of a recipe, that ``init_from`` has other values of.

    Args:
        settings: of the run, a configuration with options of its own beside it.
        config: of the model of ``init_from``.
    """
    default = type(settings)()
    names = []
    for field in dataclasses.fields(config):
        wanted, usual, own = (
            to_json_value(getattr(values, field.name)) for values in (settings, default, config)
        )
        if wanted not in (usual, own):
            names.append(f"model.{field.name}")
    if names:
        log.info(NOT_USED, ", ".join(names))
