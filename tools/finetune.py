"""`cavmae finetune KIND`: each kind of fine-tuning is a module of `cavmae.finetune`."""

import importlib
from collections.abc import Sequence

from cavmae.datasets.errors import UsageError

KINDS = {"speakers": "cavmae.finetune.train"}


def main(words: Sequence[str]) -> int:
    """Hands over to the kind that is named first."""
    if not words or words[0] not in KINDS:
        given = f"not {words[0]!r}" if words else "and one has to be named"
        raise UsageError(f"cavmae finetune trains {', '.join(KINDS)}, {given}.")
    result: int = importlib.import_module(KINDS[words[0]]).main(words[1:])
    return result
