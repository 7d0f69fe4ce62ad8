"""`cavmae finetune TASK --out RUN` fine-tunes; so does `python -m cavmae.finetune.train TASK`."""

import importlib
from collections.abc import Sequence

from cavmae.common.cli import module_main, output
from cavmae.common.errors import UsageError
from cavmae.pretrain.engine.run import training_command

# Task: (module with Settings, build, CONFIGS and DESCRIPTION; the class of its settings, purpose).
TASKS = {
    "speakers": ("cavmae.finetune.speaker.run", "SpeakerSettings", "a mask and a voice per person"),
}


def main(words: Sequence[str]) -> int:
    """Runs the task named by the first word.

    Raises:
        UsageError: there is no such task.
        CavmaeError: see :func:`~cavmae.pretrain.engine.run.training_command`.
    """
    if not words or words[0] in ("-h", "--help"):
        listing = "\n".join(f"  {task:<9} {purpose}" for task, (_, _, purpose) in TASKS.items())
        output(f"usage: cavmae finetune TASK ...\n\n{listing}")
        output("\ncavmae finetune TASK --help lists the options.")
        return 0 if words else 2
    if words[0] not in TASKS:
        raise UsageError(f"cavmae finetune trains {', '.join(TASKS)}, not {words[0]!r}.")
    module_name, settings_class, _ = TASKS[words[0]]
    run = importlib.import_module(module_name)
    return training_command(
        words[1:], f"finetune {words[0]}", run.DESCRIPTION, getattr(run, settings_class),
        run.CONFIGS, run.build,
    )  # fmt: skip


if __name__ == "__main__":
    module_main(main)
