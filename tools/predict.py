"""`cavmae predict VIDEO... --model DIR --out OUT`: events over time in recordings."""

from collections.abc import Sequence
from pathlib import Path

from cavmae.common.cli import fill, module_main, parse, parser
from cavmae.finetune.inference.event_settings import PredictSettings


def main(words: Sequence[str]) -> int:
    """Predicts events; see :func:`~cavmae.tools.prediction.predict_recordings`."""
    cli = parser("predict", "Events over time in recordings.")
    cli.add_argument(
        "videos", nargs="+", type=str, metavar="VIDEO",
        help="Video or audio file or URL; folder (searched for videos); .txt list; .csv table "
        "with the column path.",
    )  # fmt: skip
    cli.add_argument(
        "--model", required=True, type=str,
        help="Checkpoint of `finetune events`, or a name in the box (`cavmae models`) or on the "
        "hub.",
    )  # fmt: skip
    cli.add_argument(
        "--out", required=True, type=str, help="Folder for a result folder of each recording."
    )
    cli.add_argument("--device", default="auto", type=str, help="`auto`: a GPU if there is one.")
    cli.add_class_arguments(PredictSettings)
    options = parse(cli, words)
    settings = fill(PredictSettings, options)
    from cavmae.finetune.inference.event_predictor import EventPredictor
    from cavmae.tools.prediction import predict_recordings

    def load() -> EventPredictor:
        return EventPredictor.from_pretrained(options.model, options.device)

    return predict_recordings(options.videos, Path(options.out), load, settings)


if __name__ == "__main__":
    module_main(main)
