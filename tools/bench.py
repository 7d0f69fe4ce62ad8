"""`cavmae bench BENCHMARK`: speed and memory compared with a baseline of the same run."""

import importlib
from collections.abc import Sequence

from cavmae.common.cli import fill, module_main, output, parse, parser
from cavmae.common.errors import UsageError

# benchmark: (module with `run(settings)`, its settings class, its description)
BENCHES = {
    "shard": ("cavmae.tools.benchmarks.sharding", "ShardBench", "videos to shards"),
    "render": ("cavmae.tools.benchmarks.rendering", "RenderBench", "rendering of talkers"),
    "lips": (
        "cavmae.tools.benchmarks.lips",
        "LipsBench",
        "agreement of mouths and voices in a rendered corpus",
    ),
    "pretrain": ("cavmae.tools.benchmarks.pretraining", "PretrainBench", "pretraining steps"),
    "finetune": (
        "cavmae.tools.benchmarks.finetuning",
        "FinetuneBench",
        "fine-tuning steps and composing of scenes",
    ),
    "parity": (
        "cavmae.tools.benchmarks.parity",
        "ParityBench",
        "parity of a device with the CPU, in every precision",
    ),
    "labels": (
        "cavmae.tools.benchmarks.labels",
        "LabelsBench",
        "label efficiency: pretrained against from scratch on few labelled clips",
    ),
    "separate": (
        "cavmae.tools.benchmarks.separating",
        "SeparateBench",
        "separation of recordings",
    ),
    "load": ("cavmae.tools.benchmarks.loading", "LoadBench", "shards to batches"),
}


def main(words: Sequence[str]) -> int:
    """Run one benchmark and print its table.

    Raises:
        UsageError: no benchmark has that name.
    """
    listing = "\n".join(
        f"  {name:<8} {description}" for name, (_, _, description) in BENCHES.items()
    )
    if not words or words[0] in ("-h", "--help"):
        output(f"usage: cavmae bench BENCHMARK ...\n\n{listing}")
        output("\nRun cavmae bench BENCHMARK --help for the options of a benchmark.")
        return 0 if words else 2
    if words[0] not in BENCHES:
        raise UsageError(f"There is no benchmark {words[0]!r}: choose from {', '.join(BENCHES)}.")
    module_name, class_name, description = BENCHES[words[0]]
    module = importlib.import_module(module_name)
    settings_class = getattr(module, class_name)
    arguments = parser(f"bench {words[0]}", f"Measures: {description}.")
    arguments.add_class_arguments(settings_class)
    module.run(fill(settings_class, parse(arguments, words[1:])))
    return 0


if __name__ == "__main__":
    module_main(main)
