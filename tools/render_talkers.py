"""`cavmae render-talkers --out DIR --clips N`: synthetic talking heads with voices and masks."""

from collections.abc import Sequence
from pathlib import Path

from cavmae.common.cli import fill, module_main, parse, parser, stop_on_signals
from cavmae.common.settings import LimitedPoolSettings
from cavmae.datasets.synthetic.settings import RenderSettings


def main(words: Sequence[str]) -> int:
    """Renders a corpus; see :func:`~cavmae.datasets.synthetic.corpus.render_talkers`."""
    arguments = parser(
        "render-talkers", "Synthetic talking heads with ground-truth voices and masks."
    )
    arguments.add_argument("--out", required=True, type=str, help="Folder of the corpus.")
    arguments.add_argument(
        "--clips", required=True, type=int, help="Number of clips of the corpus."
    )
    arguments.add_class_arguments(RenderSettings)
    arguments.add_class_arguments(LimitedPoolSettings)
    options = parse(arguments, words)
    settings, run_settings = fill(RenderSettings, options), fill(LimitedPoolSettings, options)
    from cavmae.datasets.synthetic.corpus import render_talkers

    with stop_on_signals():
        return render_talkers(Path(options.out), options.clips, settings, run_settings)


if __name__ == "__main__":
    module_main(main)
