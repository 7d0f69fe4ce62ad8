"""`cavmae pretrain --out RUN` trains CAV-MAE; so does `python -m cavmae.pretrain.train`."""

import dataclasses
import logging
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

from accelerate import Accelerator

from cavmae.common.cli import module_main, named_config, parse, parser
from cavmae.datasets.stream.loader import Loader
from cavmae.datasets.stream.view import View
from cavmae.pretrain.cavmae_task import CAVMAETask
from cavmae.pretrain.data import loaders, transform_of, views_for
from cavmae.pretrain.engine import checkpoints
from cavmae.pretrain.engine.distributed import DistEnv
from cavmae.pretrain.engine.run_setup import distributed_run, open_run
from cavmae.pretrain.engine.trainer import Trainer
from cavmae.pretrain.factory import build_model, compile_blocks, model_config
from cavmae.pretrain.settings import (
    DataSettings,
    LoopSettings,
    ModelSettings,
    ObjectiveSettings,
    OptimizerSettings,
)

log = logging.getLogger("cavmae")
CONFIGS = Path(__file__).parent / "configs"


@dataclasses.dataclass(frozen=True)
class PretrainSettings:
    """A pretraining run.

    Args:
        data: what is trained on.
        model: what is trained.
        objective: what is minimised.
        optimizer: how weights move.
        loop: how long and how it runs.
    """

    data: DataSettings = DataSettings()  # noqa: RUF009 - frozen
    model: ModelSettings = ModelSettings()  # noqa: RUF009 - frozen
    objective: ObjectiveSettings = ObjectiveSettings()  # noqa: RUF009 - frozen
    optimizer: OptimizerSettings = OptimizerSettings()  # noqa: RUF009 - frozen
    loop: LoopSettings = LoopSettings()  # noqa: RUF009 - frozen


def main(words: Sequence[str]) -> int:
    """Trains; exit code 0 also after a signal, when everything is saved."""
    made = parser("pretrain", "Pretrains CAV-MAE on shards.")
    made.add_argument("--out", required=True, type=str, help="Folder of the run.")
    made.add_argument(
        "--resume",
        type=Literal["no", "auto"],
        default="no",
        help="`auto` goes on from the newest checkpoint in --out, if there is one.",
    )
    made.add_class_arguments(PretrainSettings)
    options = parse(made, named_config(words, CONFIGS))
    run, resume = Path(options.out), options.resume == "auto"
    filled = made.instantiate(options)
    settings = PretrainSettings(
        filled.data, filled.model, filled.objective, filled.optimizer, filled.loop
    )
    for name in ("config", "out", "resume"):
        options.pop(name, None)
    text = made.dump(options, skip_unset=False, skip_validation=True)
    train(settings, run, resume, text)
    return 0


def train(settings: PretrainSettings, run: Path, resume: bool, text: str) -> bool:
    """Runs it, as one process of however many were launched.

    Args:
        run: its folder.
        resume: go on from the newest checkpoint.
        text: the configuration, for ``config.yaml``.

    Returns:
        whether it came to its end; False: a signal stopped it.

    Raises:
        CavmaeError: see :class:`~cavmae.pretrain.engine.trainer.Loop`.
    """
    data, how = settings.data, settings.loop
    shape = model_config(settings.model, settings.objective)
    views = views_for(data, settings.objective, shape)
    with ExitStack() as stack:
        accelerator = stack.enter_context(distributed_run(how, run))
        processes = DistEnv()
        with processes.main_only():
            if processes.is_main:
                open_run(stack, run, resume, text)
        with processes.fail_together():
            task, loader, held_out = _prepare(settings, views, run, accelerator, processes)
        together = data.batch_size * how.grad_accum_steps * processes.count
        steps = how.steps or max(1, round(how.epochs * loader.stream.samples / together))
        loop = Trainer(
            task, loader, held_out, steps, how, settings.optimizer, run, accelerator, processes
        )
        # A disk may tell different machines different things: the first process's word counts.
        found = processes.broadcast(checkpoints.complete(run)[-1:] if resume else [])
        if found:
            loop.resume(found[0])
        if loop.step >= steps:
            log.info("%s is done: %d steps. Raise loop.steps to go on.", run, loop.step)
            return True
        return loop.train()


def _prepare(
    settings: PretrainSettings,
    views: tuple[View, View],
    run: Path,
    accelerator: Accelerator,
    processes: DistEnv,
) -> tuple[CAVMAETask, Loader, Loader | None]:
    """The task and this process's batches."""
    data, how = settings.data, settings.loop
    quarantine = str(run / f"broken-{processes.rank}.jsonl")
    pin = accelerator.device.type == "cuda"
    loader, held_out = loaders(data, *views, how.seed, quarantine, pin, processes)
    model = build_model(settings.model, settings.objective, how.seed)
    model.checkpoint_activations = how.checkpoint_activations
    if how.compile != "off":
        compile_blocks(model, how.compile)
    transform = transform_of(data)
    return CAVMAETask(model, settings.objective, transform, data.frames), loader, held_out


if __name__ == "__main__":
    module_main(main)
