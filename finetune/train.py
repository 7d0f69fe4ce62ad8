"""`cavmae finetune speakers --out RUN` trains the speaker model; so does this module with `-m`."""

import dataclasses
import logging
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

from accelerate import Accelerator

from cavmae.common.cli import module_main, named_config, parse, parser
from cavmae.common.errors import UsageError
from cavmae.datasets.format.manifest import Manifest
from cavmae.datasets.mixtures.scene_spec import ComposeSettings
from cavmae.datasets.mixtures.scene_stream import ComposedStream
from cavmae.datasets.stream.features import FRAME_RATE
from cavmae.datasets.stream.loader import Loader
from cavmae.datasets.stream.shard_reader import Access
from cavmae.finetune.speaker.factory import build_speaker, configure_compute, statistics_for
from cavmae.finetune.speaker.scene_lists import listed_stream, shared_sources
from cavmae.finetune.speaker.settings import (
    LossSettings,
    SpeakerDataSettings,
    SpeakerModelSettings,
)
from cavmae.finetune.speaker.task import SpeakerTask
from cavmae.pretrain.engine import checkpoints
from cavmae.pretrain.engine.distributed import DistEnv
from cavmae.pretrain.engine.run_setup import distributed_run, open_run
from cavmae.pretrain.engine.trainer import Trainer
from cavmae.pretrain.settings import LoopSettings, OptimizerSettings

log = logging.getLogger("cavmae")
REMEMBERED = "%d people or videos are both trained and measured on (%s): a model remembers them."
CONFIGS = Path(__file__).parent / "speaker" / "configs"


@dataclasses.dataclass(frozen=True)
class SpeakerSettings:
    """A fine-tuning run.

    Args:
        data: what is composed from.
        compose: how scenes are drawn.
        model: what is trained.
        loss: what is minimised.
        optimizer: how weights move.
        loop: how long and how it runs.
    """

    data: SpeakerDataSettings = SpeakerDataSettings()  # noqa: RUF009 - frozen
    compose: ComposeSettings = ComposeSettings()  # noqa: RUF009 - frozen
    model: SpeakerModelSettings = SpeakerModelSettings()  # noqa: RUF009 - frozen
    loss: LossSettings = LossSettings()  # noqa: RUF009 - frozen
    optimizer: OptimizerSettings = OptimizerSettings()  # noqa: RUF009 - frozen
    loop: LoopSettings = LoopSettings()  # noqa: RUF009 - frozen


def main(words: Sequence[str]) -> int:
    """Trains; exit code 0 also after a signal, when everything is saved."""
    made = parser("finetune speakers", "Fine-tunes for voices and masks of people who talk.")
    made.add_argument("--out", required=True, type=str, help="Folder of the run.")
    made.add_argument(
        "--resume",
        type=Literal["no", "auto"],
        default="no",
        help="`auto` goes on from the newest checkpoint in --out, if there is one.",
    )
    made.add_class_arguments(SpeakerSettings)
    options = parse(made, named_config(words, CONFIGS))
    run, resume = Path(options.out), options.resume == "auto"
    filled = made.instantiate(options)
    names = [field.name for field in dataclasses.fields(SpeakerSettings)]
    settings = SpeakerSettings(**{name: getattr(filled, name) for name in names})
    for name in ("config", "out", "resume"):
        options.pop(name, None)
    text = made.dump(options, skip_unset=False, skip_validation=True)
    train(settings, run, resume, text)
    return 0


def train(settings: SpeakerSettings, run: Path, resume: bool, text: str) -> bool:
    """See :func:`cavmae.pretrain.train.train`."""
    data, how = settings.data, settings.loop
    with ExitStack() as stack:
        accelerator = stack.enter_context(distributed_run(how, run))
        processes = DistEnv()
        with processes.main_only():
            if processes.is_main:
                open_run(stack, run, resume, text)
        with processes.fail_together():
            task, loader, held_out = _prepare(settings, run, accelerator, processes)
        together = data.batch_size * how.grad_accum_steps * processes.count
        steps = how.steps or max(1, round(how.epochs * loader.stream.samples / together))
        loop = Trainer(
            task, loader, held_out, steps, how, settings.optimizer, run, accelerator, processes
        )
        found = processes.broadcast(checkpoints.complete(run)[-1:] if resume else [])
        if found:
            loop.resume(found[0])
        if loop.step >= steps:
            log.info("%s is done: %d steps. Raise loop.steps to go on.", run, loop.step)
            return True
        return loop.train()


def _prepare(
    settings: SpeakerSettings, run: Path, accelerator: Accelerator, processes: DistEnv
) -> tuple[SpeakerTask, Loader, Loader | None]:
    """The task and this process's scenes."""
    data, compose, how = settings.data, settings.compose, settings.loop
    if not data.train:
        raise UsageError("Name the shards to compose from: --data.train FOLDER.")
    heard = round(compose.seconds * FRAME_RATE)
    model = build_speaker(settings.model, (compose.height, compose.width), heard, how.seed)
    configure_compute(model, how)
    most = max(k + 1 for k, share in enumerate(compose.people) if share)
    if most > model.config.slots - 1:
        raise UsageError(
            f"compose.people: up to {most} people, but model.slots {model.config.slots} has places "
            f"for {model.config.slots - 1} beside the residual."
        )
    quarantine = str(run / f"broken-{processes.rank}.jsonl")
    where: dict[str, Any] = {
        "seed": how.seed,
        "rank": processes.rank,
        "world_size": processes.count,
        "access": Access(data.verify, max_broken=data.max_broken, quarantine=quarantine),
    }
    shown = model.config.motion_size, model.config.key_frames, data.batch_size
    pin = accelerator.device.type == "cuda"
    stream = ComposedStream(
        Manifest.load(data.train), compose, *shown, clips=data.clips, exclude=data.exclude, **where
    )
    loader = Loader(stream, data.workers, pin_memory=pin)
    held_out = None
    if data.held_out is not None and data.held_out_shards is not None:
        measured = listed_stream(
            data.held_out, data.held_out_shards, model.config, data.batch_size, **where
        )
        held_out = Loader(measured, data.workers, pin_memory=pin)
        if processes.is_main and (known := shared_sources(stream.pool, measured.pool)):
            log.warning(REMEMBERED, len(known), ", ".join(known[:3]))
    frozen = settings.model.train_encoder == "frozen"
    # What starts from nothing has no lower layers to be careful with.
    pretrained = settings.model.encoder is not None or settings.model.init_from is not None
    decay = settings.model.layer_decay if pretrained else 1.0
    statistics = statistics_for(settings.model, data.train)
    return SpeakerTask(model, settings.loss, statistics, frozen, decay), loader, held_out


if __name__ == "__main__":
    module_main(main)
