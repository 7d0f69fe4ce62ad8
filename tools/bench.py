"""`cavmae bench BENCHMARK`: speed and memory compared with a baseline of the same run."""

from collections.abc import Sequence
from typing import Any

from cavmae.common.cli import module_main, parse_settings, parser
from cavmae.common.commands import Command, dispatch, import_object
from cavmae.tools.benchmarks import settings

# benchmark: (module with a `run(settings)`, class of its settings, purpose)
BENCHMARKS: dict[str, tuple[str, type[Any], str]] = {
    "shard": ("sharding", settings.ShardBench, "videos to shards"),
    "plan": ("planning", settings.PlanBench, "lists of inputs to plans of sharding"),
    "load": ("loading", settings.LoadBench, "shards to batches"),
    "render": ("rendering", settings.RenderBench, "rendering of talkers"),
    "lips": ("lips", settings.LipsBench, "agreement of mouths and voices in a corpus"),
    "pretrain": ("pretraining", settings.PretrainBench, "pretraining steps"),
    "temporal": ("temporal", settings.TemporalBench, "temporal attentions, by number of frames"),
    "finetune": ("finetuning", settings.FinetuneBench, "fine-tuning steps, loading"),
    "separators": ("separators", settings.SeparatorsBench, "separators after the same CPU time"),
    "variants": ("variants", settings.VariantsBench, "options of a task after the same CPU time"),
    "sound-steps": ("sound_steps", settings.SoundStepsBench, "training steps on sound alone"),
    "parity": ("parity", settings.ParityBench, "a device against the CPU, by precision"),
    "labels": ("labels", settings.LabelsBench, "pretrained against from scratch"),
    "separate": ("separating", settings.SeparateBench, "separation of recordings"),
}


def main(words: Sequence[str]) -> int | None:
    """Runs one benchmark and prints its table.

    Raises:
        UsageError: no benchmark has that name, or an option is out of range.
    """
    commands = {name: Command(module, text) for name, (module, _, text) in BENCHMARKS.items()}
    return dispatch("cavmae bench", "benchmark", commands, words, _call)


def _call(name: str, words: Sequence[str]) -> int:
    module, settings_class, purpose = BENCHMARKS[name]
    arguments = parser(f"bench {name}", f"Measures: {purpose}.")
    bench, _ = parse_settings(arguments, settings_class, words)
    import_object(f"cavmae.tools.benchmarks.{module}:run")(bench)
    return 0


if __name__ == "__main__":
    module_main(main)
