"""`cavmae finetune events --out RUN`: training of an event classifier."""

from collections.abc import Sequence
from pathlib import Path

from cavmae.common.cli import module_main
from cavmae.finetune.events.settings import EventSettings
from cavmae.pretrain.engine.command import training_command

CONFIGS = Path(__file__).parent / "configs"


def main(words: Sequence[str]) -> int:
    """Runs the command; see :func:`~cavmae.pretrain.engine.command.training_command`."""
    description = "Trains a classifier of events on labelled clips."
    return training_command(
        words, "finetune events", description, EventSettings, CONFIGS,
        "cavmae.finetune.events.run:build",
    )  # fmt: skip


if __name__ == "__main__":
    module_main(main)
