"""Entry point of the program `cavmae`: dispatches to a command, and imports only its module."""

import importlib
import sys
from collections.abc import Sequence

from cavmae.common.cli import output, run
from cavmae.common.errors import UsageError

# command: (module with a `main(words)`, its description in the usage message)
COMMANDS = {
    "shard": ("cavmae.tools.shard", "videos to shards"),
    "check": ("cavmae.tools.check", "verify a data set; counts, statistics, a contact sheet"),
    "render-talkers": (
        "cavmae.tools.render_talkers",
        "render talking heads with known voices and masks",
    ),
    "pretrain": ("cavmae.pretrain.train", "train CAV-MAE on shards"),
    "finetune": ("cavmae.finetune.train", "train on labelled clips: `finetune speakers`"),
    "evaluate": ("cavmae.tools.evaluate", "metrics of a speaker model; fixed lists of scenes"),
    "separate": ("cavmae.tools.separate", "voices and masks of the people in any video"),
    "report": (
        "cavmae.tools.report",
        "training runs, evaluations and separations on one HTML page",
    ),
    "retrieve": ("cavmae.tools.retrieve", "audio-video retrieval; features of clips"),
    "inpaint": ("cavmae.tools.inpaint", "original, masked and reconstructed clips as an image"),
    "export": ("cavmae.tools.export", "a model with its model card, ready to publish"),
    "convert": ("cavmae.tools.convert", "published weights to ours, and back"),
    "demo": ("cavmae.tools.demo", "every step from raw clips to separation, on rendered talkers"),
    "bench": ("cavmae.tools.bench", "speed and memory compared with a baseline"),
}


def usage() -> str:
    """List of all commands."""
    lines = [f"  {name:<15} {description}" for name, (_, description) in COMMANDS.items()]
    hint = "Run cavmae COMMAND --help for the options of a command."
    return "\n".join(["usage: cavmae COMMAND ...", "", *lines, "", hint])


def dispatch(words: Sequence[str]) -> int | None:
    """Run the command that the first word names.

    Raises:
        UsageError: no command has that name.
    """
    if not words or words[0] in ("-h", "--help", "help"):
        output(usage())
        return 0 if words else 2
    if words[0] not in COMMANDS:
        raise UsageError(f"There is no command {words[0]!r}: choose from {', '.join(COMMANDS)}.")
    module = importlib.import_module(COMMANDS[words[0]][0])
    result: int | None = module.main(words[1:])
    return result


def main() -> None:
    """Run the command line of this process and exit with its code."""
    sys.exit(run(dispatch))


if __name__ == "__main__":
    main()
