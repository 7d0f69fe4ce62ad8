"""A pretraining run: the parts that its settings make."""

from cavmae.pretrain.cavmae_task import CAVMAETask
from cavmae.pretrain.data import build_loaders, build_transform, views_for
from cavmae.pretrain.engine.run import RunContext, TrainingParts
from cavmae.pretrain.factory import build_model, compile_blocks, model_config
from cavmae.pretrain.settings import PretrainSettings


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
