"""`cavmae make-footage SHARDS --out DIR`: long recordings with ground truth, for evaluation."""

from collections.abc import Sequence
from pathlib import Path

from cavmae.common.cli import module_main, parse_settings, parser, stop_on_signals
from cavmae.datasets.footage.spec import FootageSettings


def main(words: Sequence[str]) -> int:
    """Renders recordings; see :func:`~cavmae.datasets.footage.rendering.make_footage`."""
    cli = parser("make-footage", "Renders long recordings with cuts, exits and insets, with truth.")
    cli.add_argument("shards", type=str, help="Folder or URL of shards of single talkers.")
    cli.add_argument("--out", required=True, type=str, help="Folder of the recordings.")
    settings, options = parse_settings(cli, FootageSettings, words)
    from cavmae.datasets.footage.rendering import make_footage

    with stop_on_signals():
        make_footage(options.shards, Path(options.out), settings)
    return 0


if __name__ == "__main__":
    module_main(main)
