"""Facts about published weights that go with them: training data, expected results, licence.

They are the field ``about`` of ``config.json``, which `cavmae export` writes. No PyTorch is
imported, so that models are listed at once.
"""

import dataclasses
from pathlib import Path
from typing import Any

from cavmae.common.json_files import read_json, typed, value_as
from cavmae.pretrain.engine.model_files import CONFIG

FIELD = "about"


@dataclasses.dataclass(frozen=True)
class About:
    """Facts about a model, each None if it is unknown.

    Attributes:
        trained_on: training data, as a phrase that follows "trained on".
        expect: results that users can expect, and their limits, as a phrase that follows "expect".
        license: identifier of the license of the weights.
    """

    trained_on: str | None = None
    expect: str | None = None
    license: str | None = None

    def sentence(self, name: str) -> str | None:
        """Sentence on training data and expected results; None: neither is known.

        Args:
            name: of the model.
        """
        if self.trained_on is None:
            return None if self.expect is None else f"{name}: expect {self.expect}."
        expect = "" if self.expect is None else f"; expect {self.expect}"
        return f"{name} was trained on {self.trained_on}{expect}."


def take_about(record: dict[str, Any]) -> About:
    """Removes the facts from the content of a ``config.json`` and returns them.

    Raises:
        ValueError: they have another type.
    """
    about: About = value_as(About, record.pop(FIELD, {}), FIELD)
    return about


def read_facts(folder: Path, remedy: str) -> tuple[str, About]:
    """Type of the model in a folder, and facts about it.

    Raises:
        FileNotFoundError: it has no ``config.json``.
        ValueError: a field is missing or has another type.
        JSONError: the file is damaged.
    """
    record = read_json(folder / CONFIG, remedy=remedy)
    model_type: str = typed(record, "model_type", str)
    return model_type, take_about(record)
