"""`cavmae bench parity`: the same training steps on a device, in every precision, beside the CPU.

The CPU in fp32 is the reference. Weights, batches and random draws are the same everywhere: what
differs is what the device, the precision or the compiler makes of them.
"""

import dataclasses
import logging
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.overrides import TorchFunctionMode

from cavmae.common.errors import CavmaeError, UsageError
from cavmae.common.files import write_atomically
from cavmae.datasets.stream.features import SAMPLE_RATE, fbank, fbank_batch
from cavmae.datasets.stream.transforms import Augmentation, DeviceTransform, Statistics
from cavmae.finetune.speaker.factory import speaker_config as speaker_shape_of
from cavmae.finetune.speaker.model import SpeakerModel
from cavmae.finetune.speaker.settings import LossSettings
from cavmae.finetune.speaker.task import SpeakerTask
from cavmae.pretrain.cavmae_task import CAVMAETask
from cavmae.pretrain.encoder import SIZES, config_for_size
from cavmae.pretrain.engine.optim import build_optimizer
from cavmae.pretrain.engine.task import Task
from cavmae.pretrain.factory import compile_blocks
from cavmae.pretrain.model import CAVMAE
from cavmae.pretrain.settings import ObjectiveSettings, OptimizerSettings
from cavmae.tools.benchmarks.finetuning import configured
from cavmae.tools.benchmarks.pretraining import made_clips
from cavmae.tools.benchmarks.scenes import made_scenes
from cavmae.tools.benchmarks.table import machine, text_of

log = logging.getLogger("cavmae")
DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
SCALE_SEARCH = 16  # steps in which fp16's scale has to be found


@dataclasses.dataclass(frozen=True)
class ParityBench:
    """Settings of the comparison.

    Args:
        size: of the pretraining model: tiny, small, base or large.
        speaker: configuration of the speaker model: ``tiny``, ``small`` or ``base``.
        encoder_size: of the speaker model's encoder.
        batch: clips, and half as many scenes.
        compile: backend of torch.compile that is compared, too; ``off``.
        device: ``auto``: a GPU if there is one. On the CPU precisions are compared.
        out: JSON file for the rows.
    """

    size: str = "base"
    speaker: Literal["tiny", "small", "base"] = "small"
    encoder_size: Literal["tiny", "small", "base"] = "tiny"
    batch: int = 4
    compile: str = "off"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    out: str | None = None


class Compared(NamedTuple):
    """One thing, computed in a way.

    Attributes:
        name: of both.
        loss: relative error of the loss; None: it has none.
        error: relative error of the values or of all gradients, ``|x - reference| / |reference|``.
        worst: the largest of a single parameter, and its name.
        seconds: that it took, the first time.
        note: what else there is to say.
    """

    name: str
    loss: float | None
    error: float | None
    worst: str = ""
    seconds: float = 0.0
    note: str = ""


class SameDraws(TorchFunctionMode):
    """Draws of the CPU's generator, whatever device they are wanted on."""

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
    """Products and convolutions of fp32 in TensorFloat-32, or not."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


class ParityStep(NamedTuple):
    """Of one training step: loss, gradients by name on the CPU, seconds, the scale of fp16."""

    loss: float
    gradients: dict[str, Tensor]
    seconds: float
    scale: float


def step(task: Task, batch: dict[str, Any], device: torch.device, precision: str) -> ParityStep:
    """Loss and gradients of a batch; the weights stay as they are.

    Raises:
        CavmaeError: fp16 finds no scale at which gradients are finite.
    """
    task.to(device).train()
    moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}
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
        scaler.update(scale / 2)  # as a step that is left out does
    raise CavmaeError(f"fp16 finds no scale in {SCALE_SEARCH} steps.")


def relative(x: Tensor, reference: Tensor) -> float:
    """``|x - reference| / |reference|``; NaN is never small."""
    x, reference = x.detach().cpu().double(), reference.detach().cpu().double()
    return float((x - reference).norm() / reference.norm().clamp(min=1e-30))


def compared(name: str, found: ParityStep, reference: ParityStep) -> Compared:
    """A step beside the reference's."""
    names = list(reference.gradients)
    if list(found.gradients) != names:
        raise CavmaeError(f"{name}: other parameters have gradients than on the CPU.")
    flat = [torch.cat([s.gradients[n].flatten() for n in names]) for s in (found, reference)]
    # Of parameters with a part in the gradient: the rest is rounding on both sides.
    least = 1e-3 * float(flat[1].norm()) / len(names) ** 0.5
    errors = {
        n: relative(found.gradients[n], reference.gradients[n])
        for n in names
        if float(reference.gradients[n].norm()) > least
    }
    worst = max(errors, key=lambda n: errors[n])
    return Compared(
        name,
        abs(found.loss - reference.loss) / abs(reference.loss),
        relative(*flat),
        f"{errors[worst]:.1e} {worst}",
        found.seconds,
        f"scale {found.scale:g}" if found.scale != 1 else "",
    )


def features(device: torch.device) -> Iterator[Compared]:
    """Filter banks and normalised batches."""
    rng = torch.Generator().manual_seed(0)
    waves = 0.1 * torch.randn(4, 2 * SAMPLE_RATE, generator=rng)
    started = time.perf_counter()
    ours = fbank_batch(waves.to(device)).cpu()
    seconds = time.perf_counter() - started
    theirs = torch.stack([fbank(wave) for wave in waves])
    most = f"{float((ours - theirs).abs().max()):.1e} at most"
    yield Compared("filter banks, beside torchaudio's", None, relative(ours, theirs), "", seconds,
                   most)  # fmt: skip
    batch = made_clips(4, 256, 224)
    augmentation = Augmentation(noise=True, roll=64, crop=0.7, flip=True, freq_mask=24)
    transform = DeviceTransform(Statistics(), augmentation)
    shown = []
    for where in (device, torch.device("cpu")):
        torch.manual_seed(0)
        moved = {k: v.to(where) if isinstance(v, Tensor) else v for k, v in batch.items()}
        with SameDraws():
            shown.append(transform.to(where)(moved))
    for name in ("fbank", "frames"):
        yield Compared(f"augmented {name}", None, relative(shown[0][name], shown[1][name]))


def pretraining(bench: ParityBench) -> tuple[Callable[[], Task], dict[str, Any]]:
    """The pretraining task and a batch of made clips."""

    def made() -> Task:
        torch.manual_seed(0)
        model = CAVMAE(config_for_size(bench.size))
        return CAVMAETask(model, ObjectiveSettings(), DeviceTransform(Statistics()))

    return made, made_clips(bench.batch, 1024, 224)


def speaking(bench: ParityBench) -> tuple[Callable[[], Task], dict[str, Any]]:
    """The task of the speaker model, its encoder learning, too, and a batch of made scenes."""
    settings = configured(bench.speaker)
    shape = speaker_shape_of(settings, config_for_size(bench.encoder_size), (224, 224), 256)

    def made() -> Task:
        torch.manual_seed(0)
        return SpeakerTask(SpeakerModel(shape), LossSettings(), Statistics(), frozen=False)

    return made, made_scenes(shape, max(1, bench.batch // 2))


def compiled_part(task: Task) -> nn.Module:
    """Module whose blocks a run compiles."""
    return task.model.encoder if isinstance(task, SpeakerTask) else task.model


def ways_of(bench: ParityBench, device: torch.device) -> list[tuple[str, str, bool, str]]:
    """Name, precision, whether in TensorFloat-32, and backend of the compiler, of all ways."""
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
    title: str, made: Callable[[], Task], batch: dict[str, Any], bench: ParityBench,
    device: torch.device,
) -> Iterator[Compared]:  # fmt: skip
    """All ways of a training step."""
    reference = step(made(), batch, torch.device("cpu"), "fp32")
    yield Compared(f"{title}: CPU, fp32", None, None, "", reference.seconds, "the reference")
    for name, precision, tf32, backend in ways_of(bench, device):
        title_ = f"{title}: {name}"
        try:
            task = made()
            if backend != "off":
                compile_blocks(compiled_part(task), backend)
            with tensor_float(tf32):
                yield compared(title_, step(task, batch, device, precision), reference)
        except Exception as error:  # noqa: BLE001 - the other ways are measured all the same
            log.error("%s", traceback.format_exc())
            yield Compared(title_, None, None, note=f"failed: {type(error).__name__}: {error}")


def run(bench: ParityBench) -> None:
    """Measures and prints; rows that were measured are written at once."""
    if bench.size not in SIZES:
        raise UsageError(f"--size {bench.size}: there are {', '.join(SIZES)}.")
    if bench.batch < 2:
        raise UsageError("--batch is at least 2: clips are compared with each other.")
    gpu = torch.cuda.is_available() if bench.device == "auto" else bench.device == "cuda"
    if gpu and not torch.cuda.is_available():
        raise UsageError("--device cuda: PyTorch sees no GPU here; use auto or cpu.")
    device = torch.device("cuda" if gpu else "cpu")
    rows: list[Compared] = []

    def note(row: Compared) -> None:
        rows.append(row)
        log.info("%s: error %s, %s", row.name, row.error, row.note)
        if bench.out is not None:
            with write_atomically(Path(bench.out)) as file:
                file.write(text_of(rows))

    with tensor_float(False):
        for row in features(device):
            note(row)
    title = f"pretraining, {bench.size}"
    for row in steps_of(title, *pretraining(bench), bench, device):
        note(row)
    title = f"speakers, {bench.speaker}"
    for row in steps_of(title, *speaking(bench), bench, device):
        note(row)
    name = torch.cuda.get_device_name() if gpu else "CPU"
    print(f"cavmae bench parity: {name} beside the CPU in fp32 ({machine()})\n")
    print("| step | loss | gradients, values | worst parameter | s, first time | |")
    print("|---|---:|---:|---|---:|---|")
    for row in rows:
        loss, error = ("" if v is None else f"{v:.1e}" for v in (row.loss, row.error))
        print(f"| {row.name} | {loss} | {error} | {row.worst} | {row.seconds:.2f} | {row.note} |")
    if any(row.note.startswith("failed") for row in rows):
        raise CavmaeError("Some steps failed: the log says how.")
