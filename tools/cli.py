"""Entry point of the program `cavmae`: dispatches to a command, and imports only its module."""

import sys
from collections.abc import Sequence

from cavmae.common import commands
from cavmae.common.cli import run
from cavmae.common.commands import Command

# Every module has a `main(words)`, and imports PyTorch only after it has parsed its options.
COMMANDS = {
    "shard": Command("cavmae.tools.shard", "convert videos to shards", "Data"),
    "check": Command("cavmae.tools.check", "verify shards; statistics, a contact sheet", "Data"),
    "render-talkers": Command("cavmae.tools.render_talkers", "synthesize talking heads", "Data"),
    "make-scenes": Command("cavmae.tools.make_scenes", "draw a fixed list of scenes", "Data"),
    "make-footage": Command(
        "cavmae.tools.make_footage", "render long recordings with truth", "Data"
    ),
    "plan": Command("cavmae.tools.plan", "hours, sizes, costs by measured rates", "Data"),
    "pretrain": Command("cavmae.pretrain.train", "train CAV-MAE on shards", "Training"),
    "finetune": Command("cavmae.finetune.train", "train on labelled clips", "Training"),
    "expand": Command("cavmae.tools.expand", "grow a motion pathway under a budget", "Training"),
    "evaluate": Command(
        "cavmae.tools.evaluate", "metrics of a speaker model or event classifier", "Evaluation"
    ),
    "evaluate-separator": Command(
        "cavmae.tools.evaluate_separator", "metrics of a sound separator", "Evaluation"
    ),
    "evaluate-tracks": Command(
        "cavmae.tools.evaluate_tracks", "identity of people over long recordings", "Evaluation"
    ),
    "retrieve": Command("cavmae.tools.retrieve", "audio-video retrieval; features", "Evaluation"),
    "inpaint": Command("cavmae.tools.inpaint", "reconstruct masked patches", "Evaluation"),
    "bench": Command("cavmae.tools.bench", "speed and memory against a baseline", "Evaluation"),
    "separate": Command("cavmae.tools.separate", "voices and masks of people in videos", "Use"),
    "predict": Command("cavmae.tools.predict", "events over time in recordings", "Use"),
    "report": Command("cavmae.tools.report", "runs and results on one HTML page", "Use"),
    "export": Command("cavmae.tools.export", "publish a model with its model card", "Use"),
    "convert": Command("cavmae.tools.convert", "published weights to ours, and back", "Use"),
    "models": Command("cavmae.tools.models", "models in the box and in the hub's cache", "Use"),
    "doctor": Command("cavmae.tools.doctor", "versions, codecs, devices, what is missing", "Use"),
    "demo": Command("cavmae.tools.demo", "every step on rendered talkers", "Use"),
}


def dispatch(words: Sequence[str]) -> int | None:
    """Runs the command that the first word names.

    Raises:
        UsageError: no command has that name.
    """
    return commands.dispatch("cavmae", "command", COMMANDS, words)


def main() -> None:
    """Runs the command line of this process and exits with its code."""
    sys.exit(run(dispatch))


if __name__ == "__main__":
    main()
