"""`cavmae shard INPUT... --out DIR`: converts videos to shards; `--status DIR`: what is done."""

from collections.abc import Sequence

from cavmae.common.cli import fill, module_main, output, parse, parser, stop_on_signals
from cavmae.common.errors import UsageError
from cavmae.datasets.sharding.settings import ShardRunSettings, ShardSettings


def main(words: Sequence[str]) -> int:
    """Converts videos to shards; see :func:`~cavmae.datasets.sharding.job.shard`.

    Raises:
        UsageError: neither inputs with ``--out``, nor ``--status`` alone.
        CavmaeError: see :func:`~cavmae.datasets.sharding.job.shard`.
    """
    arguments = parser("shard", "Videos (files, folders, lists, tables, URLs) to shards.")
    arguments.add_argument(
        "inputs",
        nargs="*",
        type=str,
        metavar="INPUT",
        help="Video file or URL; folder (searched for videos); .txt list; .csv table with the "
        "columns path and optionally start, end, labels (separated by ;), speaker, masks; .json "
        "data file of the CAV-MAE reference.",
    )
    arguments.add_argument(
        "--out", type=str,
        help="Folder of the data set, or its address at an object store (s3://, gs://), which "
        "needs --local-folder.",
    )  # fmt: skip
    arguments.add_argument(
        "--status", type=str, metavar="OUT",
        help="Instead of all else: print which parts of a data set are done, running or missing, "
        "and the Slurm array of the missing ones. OUT may be the address of a remote data set.",
    )  # fmt: skip
    arguments.add_class_arguments(ShardSettings)
    arguments.add_class_arguments(ShardRunSettings)
    options = parse(arguments, words)
    if options.status is not None:
        if options.inputs or options.out is not None:
            raise UsageError("--status OUT is given alone: it changes nothing.")
        from cavmae.datasets.sharding.part_status import status_text

        output(status_text(options.status))
        return 0
    if not options.inputs or options.out is None:
        raise UsageError("shard needs inputs and --out FOLDER, or --status FOLDER alone.")
    settings, run_settings = fill(ShardSettings, options), fill(ShardRunSettings, options)
    from cavmae.datasets.sharding.job import shard

    with stop_on_signals():
        return shard(options.inputs, options.out, settings, run_settings)


if __name__ == "__main__":
    module_main(main)
