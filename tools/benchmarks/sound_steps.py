"""`cavmae bench sound-steps`: training steps of separators on sound alone, and their mixtures.

Behind the rates stands a comparison with the CPU: losses and gradients of one step in fp32.
"""

import itertools
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cavmae.common.allocator import keep_memory
from cavmae.common.cli import named_config, parse_settings, parser
from cavmae.common.device import device_of
from cavmae.datasets.mixtures.seed_stream import SeedStream
from cavmae.datasets.mixtures.sound_mixer import SoundMixer
from cavmae.datasets.mixtures.sound_settings import SoundSettings
from cavmae.datasets.mixtures.speech_bank import RecordingBank, load_or_build_bank
from cavmae.datasets.stream.collate import Batch
from cavmae.datasets.stream.loader import Loader
from cavmae.finetune.separation.run import build_sound_separator
from cavmae.finetune.separation.settings import (
    SeparationSettings,
    SoundLossSettings,
    SoundModelSettings,
)
from cavmae.finetune.separation.task import SeparationTask
from cavmae.finetune.separation.train import CONFIGS
from cavmae.pretrain.engine.optim import build_optimizer
from cavmae.pretrain.engine.settings import OptimizerSettings
from cavmae.pretrain.factory import compile_blocks
from cavmae.tools.benchmarks.parity import tensor_float
from cavmae.tools.benchmarks.settings import SoundStepsBench
from cavmae.tools.benchmarks.steps import StepTimes, precision_of, seconds_per_step, synchronize
from cavmae.tools.benchmarks.table import in_turns, row_of, save, table

PARITY_BATCH = 2
MIXTURES = "mixtures alone"


class StepWay(NamedTuple):
    """Way of making a training step.

    Attributes:
        name: in the table.
        compiled: whether blocks are compiled by inductor.
        replayed: whether the step is a CUDA graph.
    """

    name: str
    compiled: bool
    replayed: bool


EAGER = StepWay("eager", False, False)
WAYS = (
    EAGER,
    StepWay("replayed", False, True),
    StepWay("compiled", True, False),
    StepWay("compiled and replayed", True, True),
)


def run(bench: SoundStepsBench) -> None:
    """Prints the comparison with the CPU, and a table of mixtures a second."""
    bank = _bank(bench)
    device = device_of(bench.device)
    on_gpu = device.type == "cuda"
    ways: dict[str, Any] = {MIXTURES: (_mixing_seconds, (bench,))}
    for recipe, way in itertools.product(bench.recipes, WAYS):
        if (on_gpu or not way.replayed) and (bench.compile or not way.compiled):
            ways[f"{recipe}, {way.name}"] = (_step_seconds, (bench, recipe, way))
    measured = in_turns(ways, bench.rounds, gpu=on_gpu)
    rows = [row_of(name, seconds, peak) for name, (seconds, peak) in measured.items()]
    title = (
        f"Separators on sound alone, batches of {bench.batch_size}, {bench.made_together} of them "
        f"made together, {precision_of(bench)}"
    )
    print(table(title, "mixture", MIXTURES, rows))
    save(rows, bench.out)
    # Last, as a compiler may take minutes.
    for recipe, way in itertools.product(bench.recipes if on_gpu else (), WAYS):
        if bench.compile or not way.compiled:
            losses, gradients = parity(recipe, bank, device, way)
            print(
                f"{recipe}, {way.name}: loss {losses:.1e}, gradients {gradients:.1e} from the CPU's"
            )


def parity(
    recipe: str, bank: RecordingBank, device: torch.device, way: StepWay
) -> tuple[float, float]:
    """Relative differences of loss and gradients of one fp32 step from the CPU's."""
    results = []
    for place, own_way in ((torch.device("cpu"), EAGER), (device, way)):
        task = _task(recipe, bank, own_way).to(place)
        with tensor_float(False):
            output = task("training_step", _batch(PARITY_BATCH))
            output.loss.backward()
        gradients = [p.grad.flatten().cpu() for p in task.parameters() if p.grad is not None]
        results.append((output.loss.detach().cpu(), torch.cat(gradients)))
    (loss, gradient), (other_loss, other_gradient) = results
    return _difference(loss, other_loss), _difference(gradient, other_gradient)


def model_settings_of(recipe: str) -> SoundModelSettings:
    """Model of a recipe of `cavmae finetune separator`, or of a YAML file."""
    words = named_config(["--config", recipe], CONFIGS)
    arguments = parser("finetune separator", "Configuration of the package.")
    settings: SeparationSettings = parse_settings(arguments, SeparationSettings, words)[0]
    return settings.model


def _difference(expected: Tensor, actual: Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


def _bank(bench: SoundStepsBench) -> RecordingBank:
    return load_or_build_bank([Path(folder) for folder in bench.speech], Path(bench.cache))


def _batch(size: int) -> Batch:
    return next(iter(Loader(SeedStream(size))))


def _task(recipe: str, bank: RecordingBank, way: StepWay) -> SeparationTask:
    torch.manual_seed(0)
    model = build_sound_separator(model_settings_of(recipe))
    if way.compiled:
        compile_blocks(model.separator, "inductor")
    mixer = SoundMixer(bank, None, SoundSettings())
    loss = SoundLossSettings()
    return SeparationTask(model, mixer, {}, loss, cuda_graph=way.replayed).train()


def _mixing_seconds(bench: SoundStepsBench) -> float:
    """Seconds of a mixture."""
    device = device_of(bench.device)
    if device.type == "cpu":
        keep_memory()
    mixer = SoundMixer(_bank(bench), None, SoundSettings())
    mixer.to(device)
    count = bench.batch_size * bench.made_together
    for seed in range(2):
        mixer.mix(seed, count)
    synchronize(device)
    started = time.perf_counter()
    for seed in range(bench.steps):
        mixer.mix(seed, count)
    synchronize(device)
    return (time.perf_counter() - started) / bench.steps / count


def _step_seconds(bench: SoundStepsBench, recipe: str, way: StepWay) -> float:
    """Seconds of a training step, for one mixture."""
    device = device_of(bench.device)
    if device.type == "cpu":
        keep_memory()
    task = _task(recipe, _bank(bench), way).to(device)
    optimizer = build_optimizer(task, OptimizerSettings())
    batches = iter(Loader(SeedStream(bench.batch_size, parts=bench.made_together)))
    # Whole groups of batches: mixtures are made at the first of each.
    groups = -(-bench.steps // bench.made_together)
    times = StepTimes(bench.made_together, groups * bench.made_together, precision_of(bench))
    return seconds_per_step(task, optimizer, batches, device, times) / bench.batch_size
