"""`cavmae finetune TASK --out RUN` fine-tunes; so does `python -m cavmae.finetune.train TASK`."""

from collections.abc import Sequence

from cavmae.common.cli import module_main
from cavmae.common.commands import Command, dispatch

# The module of a task has a `main(words)`, and imports PyTorch only after it has parsed them.
TASKS = {
    "speakers": Command("cavmae.finetune.speaker.train", "a mask and a voice for each person"),
    "events": Command("cavmae.finetune.events.train", "classes of clips: audio, video or both"),
    "separator": Command("cavmae.finetune.separation.train", "voices by their lips, from sound"),
}


def main(words: Sequence[str]) -> int | None:
    """Trains the task that the first word names.

    Raises:
        UsageError: there is no such task.
        CavmaeError: see :func:`~cavmae.pretrain.engine.run.run_training`.
    """
    return dispatch("cavmae finetune", "task", TASKS, words)


if __name__ == "__main__":
    module_main(main)
