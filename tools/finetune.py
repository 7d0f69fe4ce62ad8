"""`cavmae finetune KIND`: each kind of fine-tuning is a module of `cavmae.finetune`."""

import importlib
from collections.abc import Sequence

from cavmae.common.cli import output
from cavmae.common.errors import UsageError

# kind: (module with a `main(words)`, what is trained)
KINDS = {
    "speakers": ("cavmae.finetune.train", "for every person a mask and a voice, under one index")
}


def main(words: Sequence[str]) -> int:
    """Hands over to the kind that is named first."""
    if not words or words[0] in ("-h", "--help"):
        listing = "\n".join(f"  {name:<9} {what}" for name, (_, what) in KINDS.items())
        output(f"usage: cavmae finetune KIND ...\n\n{listing}")
        output("\ncavmae finetune KIND --help tells more.")
        return 0 if words else 2
    if words[0] not in KINDS:
        raise UsageError(f"cavmae finetune trains {', '.join(KINDS)}, not {words[0]!r}.")
    result: int = importlib.import_module(KINDS[words[0]][0]).main(words[1:])
    return result
