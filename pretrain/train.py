"""`cavmae pretrain --out RUN` trains CAV-MAE; so does `python -m cavmae.pretrain.train`."""

from collections.abc import Sequence
from pathlib import Path

from cavmae.common.cli import module_main
from cavmae.pretrain.engine.command import training_command
from cavmae.pretrain.settings import PretrainSettings

CONFIGS = Path(__file__).parent / "configs"


def main(words: Sequence[str]) -> int:
    """Runs the command; see :func:`~cavmae.pretrain.engine.command.training_command`."""
    description = "Pretrains CAV-MAE on shards."
    return training_command(
        words, "pretrain", description, PretrainSettings, CONFIGS, "cavmae.pretrain.run:build"
    )


if __name__ == "__main__":
    module_main(main)
