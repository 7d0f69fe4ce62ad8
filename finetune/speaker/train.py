"""`cavmae finetune speakers --out RUN`: fine-tuning of the speaker model."""

from collections.abc import Sequence
from pathlib import Path

from cavmae.common.cli import module_main
from cavmae.finetune.speaker.settings import SpeakerSettings
from cavmae.pretrain.engine.command import training_command

CONFIGS = Path(__file__).parent / "configs"


def main(words: Sequence[str]) -> int:
    """Runs the command; see :func:`~cavmae.pretrain.engine.command.training_command`."""
    description = "Fine-tunes for voices and masks of people who talk."
    return training_command(
        words, "finetune speakers", description, SpeakerSettings, CONFIGS,
        "cavmae.finetune.speaker.run:build",
    )  # fmt: skip


if __name__ == "__main__":
    module_main(main)
