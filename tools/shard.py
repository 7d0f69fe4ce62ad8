"""`cavmae shard INPUT... --out DIR`: converts videos to shards."""

from collections.abc import Sequence
from pathlib import Path

from cavmae.common.cli import fill, module_main, parse, parser, stop_on_signals
from cavmae.datasets.sharding.settings import ShardRunSettings, ShardSettings


def main(words: Sequence[str]) -> int:
    """Converts videos to shards; see :func:`~cavmae.datasets.sharding.job.shard`."""
    arguments = parser("shard", "Videos (files, folders, lists, tables, URLs) to shards.")
    arguments.add_argument(
        "inputs",
        nargs="+",
        type=str,
        metavar="INPUT",
        help="Video file or URL; folder (searched for videos); .txt list; .csv table with the "
        "columns path and optionally start, end, labels (separated by ;), speaker, masks; .json "
        "data file of the CAV-MAE reference.",
    )
    arguments.add_argument("--out", required=True, type=str, help="Folder of the data set.")
    arguments.add_class_arguments(ShardSettings)
    arguments.add_class_arguments(ShardRunSettings)
    options = parse(arguments, words)
    settings, run_settings = fill(ShardSettings, options), fill(ShardRunSettings, options)
    from cavmae.datasets.sharding.job import shard

    with stop_on_signals():
        return shard(options.inputs, Path(options.out), settings, run_settings)


if __name__ == "__main__":
    module_main(main)
