"""`cavmae bench parity`: the same training step on a device and on the CPU, in every precision.

The CPU in fp32 is the reference. Weights, batches and random numbers are the same everywhere, so
any difference comes from the device, the precision or the compiler.
"""

import dataclasses
import logging
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.overrides import TorchFunctionMode

from cavmae.common.device import device_of, to_device
from cavmae.common.errors import CavmaeError
from cavmae.common.files import write_atomically
from cavmae.common.tables import markdown_table
from cavmae.datasets.stream.features import SAMPLE_RATE, fbank, fbank_batch
from cavmae.datasets.stream.transforms import Augmentation, DeviceTransform, Statistics
from cavmae.finetune.speaker.factory import speaker_config
from cavmae.finetune.speaker.model import SpeakerModel
from cavmae.finetune.speaker.settings import EncoderSettings, LossSettings
from cavmae.finetune.speaker.task import SpeakerTask
from cavmae.pretrain.cavmae_task import CAVMAETask
from cavmae.pretrain.config import CAVMAEConfig, Size
from cavmae.pretrain.engine.optim import build_optimizer
from cavmae.pretrain.engine.settings import OptimizerSettings
from cavmae.pretrain.engine.task import Task
from cavmae.pretrain.factory import compile_blocks
from cavmae.pretrain.model import CAVMAE
from cavmae.pretrain.settings import ObjectiveSettings
from cavmae.tools.benchmarks.finetuning import settings_of
from cavmae.tools.benchmarks.pretraining import synthetic_clips
from cavmae.tools.benchmarks.scenes import synthetic_scenes
from cavmae.tools.benchmarks.settings import ParityBench
from cavmae.tools.benchmarks.table import machine, text_of

log = logging.getLogger("cavmae")
DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
CLIPS, SCENES = 4, 2  # of a pretraining and of a fine-tuning step
ENCODER_SIZE: Size = "tiny"  # of the speaker model
SCALE_SEARCH = 16  # attempts to find the loss scale of fp16


class Compared(NamedTuple):
    """Comparison of a computation with the reference.

    Attributes:
        name: of the computation and its way.
        loss: relative error of the loss; None: there is no loss.
        error: relative error of the values or of all gradients, ``|x - reference| / |reference|``.
        worst: largest relative error of a single parameter, and its name.
        seconds: of the first call.
        note: last column of the table.
    """

    name: str
    loss: float | None
    error: float | None
    worst: str = ""
    seconds: float = 0.0
    note: str = ""


class SameDraws(TorchFunctionMode):
    """Takes random numbers from the CPU's generator on every device."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.rand, torch.randint, torch.randn):
            device = kwargs.pop("device", None)
            return func(*args, **kwargs).to(device or "cpu")
        if func in (torch.rand_like, torch.multinomial):
            return func(args[0].cpu(), *args[1:], **kwargs).to(args[0].device)
        return func(*args, **kwargs)


@contextmanager
def tensor_float(allowed: bool) -> Iterator[None]:
    """Allow or forbid TensorFloat-32 for fp32 products and convolutions."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


class ParityStep(NamedTuple):
    """Result of one training step.

    Attributes:
        loss: its value.
        gradients: by names of parameters, on the CPU.
        seconds: of the step.
        scale: loss scale of fp16; else 1.
    """

    loss: float
    gradients: dict[str, Tensor]
    seconds: float
    scale: float


def training_step(
    task: Task, batch: dict[str, Any], device: torch.device, precision: str
) -> ParityStep:
    """Compute the loss and gradients of a batch without an update of the weights.

    Raises:
        CavmaeError: no loss scale of fp16 gives finite gradients.
    """
    task.to(device).train()
    moved = to_device(batch, device)
    dtype = DTYPES[precision]
    scaler = GradScaler(device.type, enabled=precision == "fp16")
    optimizer = build_optimizer(task, OptimizerSettings())
    started = time.perf_counter()
    for _ in range(SCALE_SEARCH):
        task.zero_grad(set_to_none=True)
        torch.manual_seed(0)
        with SameDraws(), torch.autocast(device.type, dtype, enabled=dtype is not None):
            loss = task("training_step", moved).loss
        scale = float(scaler.get_scale())
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        gradients = {
            name: p.grad.cpu() for name, p in task.named_parameters() if p.grad is not None
        }
        if all(bool(g.isfinite().all()) for g in gradients.values()) or precision != "fp16":
            return ParityStep(float(loss.detach()), gradients, time.perf_counter() - started, scale)
        scaler.update(scale / 2)  # as after a skipped step
    raise CavmaeError(f"No loss scale of fp16 gives finite gradients in {SCALE_SEARCH} attempts.")


def relative(x: Tensor, reference: Tensor) -> float:
    """Relative error ``|x - reference| / |reference|``; NaN stays NaN."""
    x, reference = x.detach().cpu().double(), reference.detach().cpu().double()
    return float((x - reference).norm() / reference.norm().clamp(min=1e-30))


def compare(name: str, step: ParityStep, reference: ParityStep) -> Compared:
    """Compare a step with the reference.

    Raises:
        CavmaeError: other parameters have gradients.
    """
    names = list(reference.gradients)
    if list(step.gradients) != names:
        raise CavmaeError(f"{name}: other parameters have gradients than on the CPU.")
    flat = [torch.cat([s.gradients[n].flatten() for n in names]) for s in (step, reference)]
    # Gradients below this norm are rounding errors on both sides.
    min_norm = 1e-3 * float(flat[1].norm()) / len(names) ** 0.5
    errors = {
        n: relative(step.gradients[n], reference.gradients[n])
        for n in names
        if float(reference.gradients[n].norm()) > min_norm
    }
    worst = max(errors, key=lambda n: errors[n])
    return Compared(
        name,
        abs(step.loss - reference.loss) / abs(reference.loss),
        relative(*flat),
        f"{errors[worst]:.1e} {worst}",
        step.seconds,
        f"scale {step.scale:g}" if step.scale != 1 else "",
    )


def features(device: torch.device) -> Iterator[Compared]:
    """Compare filter banks with torchaudio's, and augmented batches with the CPU's."""
    rng = torch.Generator().manual_seed(0)
    waves = 0.1 * torch.randn(4, 2 * SAMPLE_RATE, generator=rng)
    started = time.perf_counter()
    ours = fbank_batch(waves.to(device)).cpu()
    seconds = time.perf_counter() - started
    theirs = torch.stack([fbank(wave) for wave in waves])
    largest = f"{float((ours - theirs).abs().max()):.1e} at most"
    yield Compared("filter banks, torchaudio as reference", None, relative(ours, theirs), "",
                   seconds, largest)  # fmt: skip
    batch = synthetic_clips(4, 256, 224)
    augmentation = Augmentation(noise=True, roll=64, crop=0.7, flip=True, freq_mask=24)
    transform = DeviceTransform(Statistics(), augmentation)
    transformed = []
    for target in (device, torch.device("cpu")):
        torch.manual_seed(0)
        with SameDraws():
            transformed.append(transform.to(target)(to_device(batch, target)))
    for name in ("fbank", "frames"):
        error = relative(transformed[0][name], transformed[1][name])
        yield Compared(f"augmented {name}", None, error)


def pretraining(bench: ParityBench) -> tuple[Callable[[], Task], dict[str, Any]]:
    """Factory of the pretraining task, and a batch of synthetic clips."""

    def build() -> Task:
        torch.manual_seed(0)
        model = CAVMAE(CAVMAEConfig(size=bench.size))
        return CAVMAETask(model, ObjectiveSettings(), DeviceTransform(Statistics()))

    return build, synthetic_clips(CLIPS, 1024, 224)


def finetuning(bench: ParityBench) -> tuple[Callable[[], Task], dict[str, Any]]:
    """Factory of the speaker task with a trained encoder, and a batch of synthetic scenes."""
    encoder = EncoderSettings(size=ENCODER_SIZE)
    settings = dataclasses.replace(settings_of(bench.speaker).model, encoder=encoder)
    shape = speaker_config(settings, (224, 224), 256)

    def build() -> Task:
        torch.manual_seed(0)
        return SpeakerTask(SpeakerModel(shape), LossSettings(), Statistics(), frozen=False)

    return build, synthetic_scenes(shape, SCENES)


def compiled_part(task: Task) -> nn.Module:
    """Module whose blocks a training run compiles."""
    return task.model.encoder if isinstance(task, SpeakerTask) else task.model


def ways_of(bench: ParityBench, device: torch.device) -> list[tuple[str, str, bool, str]]:
    """Name, precision, use of TensorFloat-32 and compiler backend of all ways."""
    gpu = device.type == "cuda"
    ways = [("fp32", "fp32", False, "off")] if gpu else []
    ways += [("fp32 in TF32", "fp32", True, "off")] if gpu else []
    ways += [("bf16", "bf16", False, "off")]
    ways += [("fp16", "fp16", False, "off")] if gpu else []
    if bench.compile != "off":
        ways += [(f"fp32, {bench.compile}", "fp32", False, bench.compile)]
        ways += [(f"bf16, {bench.compile}", "bf16", False, bench.compile)]
    return ways


def steps_of(
    title: str, build: Callable[[], Task], batch: dict[str, Any], bench: ParityBench,
    device: torch.device,
) -> Iterator[Compared]:  # fmt: skip
    """Compare a training step in all ways with the reference."""
    reference = training_step(build(), batch, torch.device("cpu"), "fp32")
    yield Compared(f"{title}: CPU, fp32", None, None, "", reference.seconds, "the reference")
    for name, precision, tf32, backend in ways_of(bench, device):
        row_name = f"{title}: {name}"
        try:
            task = build()
            if backend != "off":
                compile_blocks(compiled_part(task), backend)
            with tensor_float(tf32):
                step = training_step(task, batch, device, precision)
                yield compare(row_name, step, reference)
        except Exception as error:  # noqa: BLE001 - a failure must not stop the other ways
            log.error("%s", traceback.format_exc())
            yield Compared(row_name, None, None, note=f"failed: {type(error).__name__}: {error}")


def run(bench: ParityBench) -> None:
    """Measure and print the table; ``out`` is updated after every row.

    Raises:
        UsageError: the device is missing.
        CavmaeError: a step failed; the table is complete otherwise.
    """
    device = device_of(bench.device)
    gpu = device.type == "cuda"
    rows: list[Compared] = []

    def record(row: Compared) -> None:
        rows.append(row)
        log.info("%s: error %s, %s", row.name, row.error, row.note)
        if bench.out is not None:
            with write_atomically(Path(bench.out)) as file:
                file.write(text_of(rows))

    with tensor_float(False):
        for row in features(device):
            record(row)
    title = f"pretraining, {bench.size}"
    for row in steps_of(title, *pretraining(bench), bench, device):
        record(row)
    title = f"speakers, {bench.speaker}"
    for row in steps_of(title, *finetuning(bench), bench, device):
        record(row)
    name = torch.cuda.get_device_name() if gpu else "CPU"
    print(f"cavmae bench parity: {name} against the CPU in fp32 ({machine()})\n")
    head = ["step", "loss", "gradients, values", "worst parameter", "s, first time", ""]
    cells = []
    for row in rows:
        loss, error = ("" if v is None else f"{v:.1e}" for v in (row.loss, row.error))
        cells.append([row.name, loss, error, row.worst, f"{row.seconds:.2f}", row.note])
    print(markdown_table(head, cells, text_columns=(0, 3, 5)))
    if any(row.note.startswith("failed") for row in rows):
        raise CavmaeError("Some steps failed: the log has their errors.")
