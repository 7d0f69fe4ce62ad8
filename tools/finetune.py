"""`cavmae finetune KIND`: dispatch to a fine-tuning task of `cavmae.finetune`."""

import importlib
from collections.abc import Sequence

from cavmae.common.cli import output
from cavmae.common.errors import UsageError

# kind: (module with a `main(words)`, its description in the usage message)
KINDS = {
    "speakers": ("cavmae.finetune.train", "a mask and a voice of every person, under one index")
}


def main(words: Sequence[str]) -> int:
    """Run the kind of fine-tuning that the first word names.

    Raises:
        UsageError: no kind has that name.
    """
    if not words or words[0] in ("-h", "--help"):
        listing = "\n".join(
            f"  {name:<9} {description}" for name, (_, description) in KINDS.items()
        )
        output(f"usage: cavmae finetune KIND ...\n\n{listing}")
        output("\nRun cavmae finetune KIND --help for the options of a kind.")
        return 0 if words else 2
    if words[0] not in KINDS:
        raise UsageError(f"cavmae finetune trains {', '.join(KINDS)}, not {words[0]!r}.")
    result: int = importlib.import_module(KINDS[words[0]][0]).main(words[1:])
    return result
