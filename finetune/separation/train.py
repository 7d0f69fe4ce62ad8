"""`cavmae finetune separator --out RUN`: training of a separator on sound alone."""

from collections.abc import Sequence
from pathlib import Path

from cavmae.common.cli import module_main
from cavmae.finetune.separation.settings import SeparationSettings
from cavmae.pretrain.engine.command import training_command

CONFIGS = Path(__file__).parent / "configs"


def main(words: Sequence[str]) -> int:
    """Runs the command; see :func:`~cavmae.pretrain.engine.command.training_command`."""
    description = "Trains the separation of voices by articulation cues, on sound alone."
    return training_command(
        words, "finetune separator", description, SeparationSettings, CONFIGS,
        "cavmae.finetune.separation.run:build",
    )  # fmt: skip


if __name__ == "__main__":
    module_main(main)
