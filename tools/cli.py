"""The program `cavmae`: finds a command and runs it. Nothing heavy is imported before that."""

import importlib
import sys
from collections.abc import Sequence

from cavmae.common.cli import output, run
from cavmae.common.errors import UsageError

# command: (module with a `main(words)`, what it does)
COMMANDS = {
    "shard": ("cavmae.tools.shard", "videos to shards"),
    "check": ("cavmae.tools.check", "verify a data set; counts, statistics, a contact sheet"),
    "render-talkers": (
        "cavmae.tools.render_talkers",
        "make talking heads with known voices and masks",
    ),
    "pretrain": ("cavmae.pretrain.train", "train CAV-MAE on shards"),
    "finetune": ("cavmae.finetune.train", "train on labelled clips: `finetune speakers`"),
    "evaluate": ("cavmae.tools.evaluate", "measures of a speaker model; fixed lists of scenes"),
    "separate": ("cavmae.tools.separate", "voices and masks of the people in any video"),
    "report": ("cavmae.tools.report", "what was trained, measured and separated, on a page"),
    "retrieve": ("cavmae.tools.retrieve", "which sound goes with which picture; features"),
    "inpaint": ("cavmae.tools.inpaint", "original, masked, reconstructed: a picture"),
    "export": ("cavmae.tools.export", "a model by itself, with a card that says what it is"),
    "convert": ("cavmae.tools.convert", "published weights to ours, and back"),
    "demo": ("cavmae.tools.demo", "the whole way on a small corpus that it makes itself"),
    "bench": ("cavmae.tools.bench", "measure speed and memory, beside a baseline"),
}


def usage() -> str:
    lines = [f"  {name:<15} {what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join(
        ["usage: cavmae COMMAND ...", "", *lines, "", "cavmae COMMAND --help tells more."]
    )


def dispatch(words: Sequence[str]) -> int | None:
    if not words or words[0] in ("-h", "--help", "help"):
        output(usage())
        return 0 if words else 2
    if words[0] not in COMMANDS:
        raise UsageError(f"There is no command {words[0]!r}; there are {', '.join(COMMANDS)}.")
    module = importlib.import_module(COMMANDS[words[0]][0])
    result: int | None = module.main(words[1:])
    return result


def main() -> None:
    sys.exit(run(dispatch))


if __name__ == "__main__":
    main()
