"""`cavmae bench WHAT`: speed and memory, beside a baseline measured in the same run."""

import importlib
from collections.abc import Sequence

from cavmae.common.cli import fill, module_main, output, parse, parser
from cavmae.common.errors import UsageError

# what: (module with `run(settings)`, its settings class, what is measured)
BENCHES = {
    "shard": ("cavmae.tools.benchmarks.sharding", "ShardBench", "videos to shards"),
    "render": ("cavmae.tools.benchmarks.rendering", "RenderBench", "rendering talkers"),
    "lips": (
        "cavmae.tools.benchmarks.lips",
        "LipsBench",
        "whether mouths show who speaks",
    ),
    "pretrain": ("cavmae.tools.benchmarks.pretraining", "PretrainBench", "steps of pretraining"),
    "finetune": (
        "cavmae.tools.benchmarks.finetuning",
        "FinetuneBench",
        "steps of fine-tuning, composing",
    ),
    "parity": (
        "cavmae.tools.benchmarks.parity",
        "ParityBench",
        "whether a GPU computes what the CPU does, in every precision",
    ),
    "labels": (
        "cavmae.tools.benchmarks.labels",
        "LabelsBench",
        "whether pretraining pays on few labelled clips",
    ),
    "separate": (
        "cavmae.tools.benchmarks.separating",
        "SeparateBench",
        "taking recordings apart",
    ),
    "load": ("cavmae.tools.benchmarks.loading", "LoadBench", "shards to batches"),
}


def main(words: Sequence[str]) -> int:
    """Runs one benchmark and prints its table."""
    listing = "\n".join(f"  {name:<8} {what}" for name, (_, _, what) in BENCHES.items())
    if not words or words[0] in ("-h", "--help"):
        output(f"usage: cavmae bench WHAT ...\n\n{listing}\n\ncavmae bench WHAT --help tells more.")
        return 0 if words else 2
    if words[0] not in BENCHES:
        raise UsageError(f"There is no benchmark {words[0]!r}; there are {', '.join(BENCHES)}.")
    module = importlib.import_module(BENCHES[words[0]][0])
    kind = getattr(module, BENCHES[words[0]][1])
    made = parser(f"bench {words[0]}", f"Measures: {BENCHES[words[0]][2]}.")
    made.add_class_arguments(kind)
    module.run(fill(kind, parse(made, words[1:])))
    return 0


if __name__ == "__main__":
    module_main(main)
