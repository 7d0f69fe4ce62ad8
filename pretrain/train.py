"""`cavmae pretrain --out RUN` trains CAV-MAE; so does `python -m cavmae.pretrain.train`."""

from collections.abc import Sequence
from pathlib import Path

from cavmae.common.cli import module_main
from cavmae.pretrain.cavmae_task import CAVMAETask
from cavmae.pretrain.data import build_loaders, build_transform, views_for
from cavmae.pretrain.engine.run import RunContext, TrainingParts, training_command
from cavmae.pretrain.factory import build_model, compile_blocks, model_config
from cavmae.pretrain.settings import PretrainSettings

CONFIGS = Path(__file__).parent / "configs"


def main(words: Sequence[str]) -> int:
    """Runs the command; see :func:`~cavmae.pretrain.engine.run.training_command`."""
    description = "Pretrains CAV-MAE on shards."
    return training_command(words, "pretrain", description, PretrainSettings, CONFIGS, build)


def build(settings: PretrainSettings, context: RunContext) -> TrainingParts:
    """Task and batches of this process.

    Raises:
        CavmaeError: settings that do not go together, data or weights that cannot be used.
    """
    data, loop = settings.data, settings.loop
    config = model_config(settings.model, settings.objective)
    views = views_for(data, settings.objective, config)
    loaders = build_loaders(data, *views, loop.seed, context)
    model = build_model(settings.model, settings.objective, loop.seed)
    model.checkpoint_activations = loop.checkpoint_activations
    if loop.compile != "off":
        compile_blocks(model, loop.compile)
    task = CAVMAETask(model, settings.objective, build_transform(data), data.frames)
    return TrainingParts(task, *loaders)


if __name__ == "__main__":
    module_main(main)
