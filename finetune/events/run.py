"""A fine-tuning run of the event classifier: the parts that its settings make."""

from cavmae.common.errors import UsageError
from cavmae.datasets.stream.transforms import Statistics
from cavmae.finetune.events.data import build_event_loaders, event_transform, open_data_sets
from cavmae.finetune.events.factory import Padding, build_events, load_events, preprocessing_of
from cavmae.finetune.events.labels import class_list
from cavmae.finetune.events.settings import EventSettings
from cavmae.finetune.events.task import EventTask
from cavmae.finetune.laterals.settings import NoLateralOptions
from cavmae.finetune.models.box import model_source
from cavmae.pretrain.engine.run import RunContext, TrainingParts
from cavmae.pretrain.factory import compile_blocks


def build(settings: EventSettings, context: RunContext) -> TrainingParts:
    """Task and batches of this process.

    Raises:
        CavmaeError: settings that do not go together, data or weights that cannot be used.
    """
    data, loop, chosen = settings.data, settings.loop, settings.model
    sets = open_data_sets(data, context)
    initial = None if chosen.init_from is None else load_events(chosen.init_from)
    known = None if initial is None else initial.config.classes
    classes = class_list(data.labels, sets.train, known)
    model = build_events(chosen, classes, initial, loop.seed)
    lateral = model.config.lateral
    if data.roll and not isinstance(lateral, NoLateralOptions):
        raise UsageError(
            f"data.roll {data.roll} shifts audio against video, which lateral {lateral.name} "
            "compares: set data.roll to 0."
        )
    model.checkpoint_activations = loop.checkpoint_activations
    pretrained = chosen.init_from or chosen.encoder_from
    padding: Padding = data.padding
    if pretrained is None:
        statistics = Statistics.of_mixture(data.train_sets)
    else:
        statistics, padding = preprocessing_of(model_source(pretrained), padding)
    loaders = build_event_loaders(data, sets, classes, model.config, padding, loop.seed, context)
    if loop.compile != "off":
        compile_blocks(model, loop.compile)
    task = EventTask(
        model, event_transform(data, statistics, padding), chosen.train_encoder == "frozen",
        chosen.train_motion == "frozen", chosen.learned_positions, chosen.head_lr_scale,
        settings.loss.sync_weight, loop.seed,
    )  # fmt: skip
    return TrainingParts(task, *loaders)
