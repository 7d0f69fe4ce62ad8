"""Command line of every training task. Imports PyTorch only after it has parsed the options."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from cavmae.common.cli import named_config, parse_settings, parser
from cavmae.common.commands import import_object


def training_command(
    words: Sequence[str],
    command: str,
    description: str,
    settings_class: type[Any],
    configs: Path,
    build: str,
) -> int:
    """Command line of a task: ``--config``, ``--out``, ``--resume`` and its settings.

    Args:
        words: of the command line.
        command: name for ``--help``.
        description: likewise.
        settings_class: dataclass of the task's settings, a
            :class:`~cavmae.pretrain.engine.settings.RunSettings`.
        configs: folder of the recipes that ``--config NAME`` refers to.
        build: ``module:function``, for :func:`~cavmae.pretrain.engine.run.run_training`.

    Returns:
        exit code 0, also after a signal.

    Raises:
        CavmaeError: see :func:`~cavmae.pretrain.engine.run.run_training`.
    """
    options_parser = parser(command, description)
    options_parser.add_argument("--out", required=True, type=str, help="Folder of the run.")
    options_parser.add_argument(
        "--resume",
        type=Literal["no", "auto"],
        default="no",
        help="`auto` goes on from the newest checkpoint in --out, if there is one.",
    )
    words = named_config(words, configs)
    settings, options = parse_settings(options_parser, settings_class, words)
    run, resume = Path(options.out), options.resume == "auto"
    for name in ("config", "out", "resume"):
        options.pop(name, None)
    config_text = options_parser.dump(options, skip_unset=False, skip_validation=True)
    from cavmae.pretrain.engine.run import run_training

    run_training(settings, import_object(build), run, resume, config_text)
    return 0
