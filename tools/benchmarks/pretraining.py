"""`cavmae bench pretrain`: pretraining steps as in the CAV-MAE reference and as in this package.

The reference's way: eager, in mixed precision on a GPU (fp32 on a CPU, where its autocast does
nothing); embeddings of all patches, then selection of the visible ones; explicit attention
matrices; predictions and loss over all patches, then masked; an optimizer of separate kernels;
losses read at every step. The mathematics is the same (tests/tools/test_bench_pretrain.py).
"""

import dataclasses
import time
from collections.abc import Iterator
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler

from cavmae.common.errors import UsageError
from cavmae.datasets.format.manifest import Manifest
from cavmae.datasets.stream.collate import Batch
from cavmae.datasets.stream.loader import Loader
from cavmae.datasets.stream.shard_reader import Access
from cavmae.datasets.stream.stream import TrainStream
from cavmae.datasets.stream.transforms import Augmentation, DeviceTransform, Statistics
from cavmae.datasets.stream.view import View
from cavmae.pretrain.blocks import Attention, Block
from cavmae.pretrain.cavmae_task import CAVMAETask, training_flops
from cavmae.pretrain.config import SIZES, CAVMAEConfig, Size
from cavmae.pretrain.encoder import gather_tokens
from cavmae.pretrain.engine.optim import build_optimizer
from cavmae.pretrain.engine.settings import OptimizerSettings
from cavmae.pretrain.engine.throughput import peak_flops
from cavmae.pretrain.factory import compile_blocks
from cavmae.pretrain.losses import normalize_patches
from cavmae.pretrain.model import CAVMAE, Latents, channels_last
from cavmae.pretrain.settings import ObjectiveSettings
from cavmae.tools.benchmarks.table import in_turns, row_of, save, table

BASELINE = "the reference's way: eager, all patches decoded and predicted"


@dataclasses.dataclass(frozen=True)
class PretrainBench:
    """Options of `cavmae bench pretrain`.

    Args:
        size: of the model: tiny, small, base or large.
        batch: clips of a step.
        steps: measured steps of a round, after as many warm-up steps.
        rounds: of all measurements; medians count.
        image: side of the frames in pixels.
        audio_frames: fbank frames of a clip.
        data_set: folder of shards for real batches; None: synthetic batches, without loading.
        workers: loading processes for real batches.
        device: ``auto``: a GPU if there is one.
        precision: of our steps; ``auto``: bf16 on a GPU, fp32 on the CPU.
        compile: also measure our steps with blocks compiled by inductor.
        sweep: further batch sizes for the first of our ways.
        fraction: of the masked patches that the cross-attention decoder decodes.
        out: JSON file for the rows.
    """

    size: Literal["tiny", "small", "base", "large"] = "small"
    batch: int = 8
    steps: int = 3
    rounds: int = 3
    image: int = 224
    audio_frames: int = 1024
    data_set: str | None = None
    workers: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    compile: bool = False
    sweep: tuple[int, ...] = ()
    fraction: float = 0.5
    out: str | None = None


@dataclasses.dataclass(frozen=True)
class Way:
    """Variant of a training step.

    Attributes:
        reference: computed as in the reference.
        decoder: kind of the decoder.
        fraction: of the masked patches that are decoded.
        precision: fp32, bf16 or fp16.
        compile: blocks are compiled.
        batch: clips of a step; 0: those of the benchmark.
    """

    reference: bool = False
    decoder: Literal["self", "cross"] = "self"
    fraction: float = 1.0
    precision: str = "fp32"
    compile: bool = False
    batch: int = 0


class ExplicitAttention(Attention):
    """Self-attention of a single frame with an explicit matrix of attention weights."""

    def forward(self, x: Tensor, frames: int = 1) -> Tensor:
        """x: [N, L, D] -> [N, L, D]."""
        # q, k, v: [N, heads, L, D / heads]
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        weights = (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(dim=-1)
        projected: Tensor = self.proj((weights @ v).transpose(1, 2).flatten(2))
        return projected


class ReferenceWay(CAVMAE):
    """CAV-MAE with the computations of the authors' implementation."""

    def __init__(self, config: CAVMAEConfig):
        super().__init__(config)
        for module in list(self.modules()):
            if isinstance(module, Block):
                attention = module.attn
                module.attn = ExplicitAttention(attention.proj.in_features, attention.heads)

    def embed(self, patches: Tensor, modality: str, keep: Tensor | None = None) -> Tensor:
        """Embed all patches, then keep some; see :meth:`Encoder.embed`."""
        tokens = super().embed(patches, modality)
        return tokens if keep is None else gather_tokens(tokens, keep)

    def forward_loss(
        self,
        patches_a: Tensor,
        patches_v: Tensor,
        latents: Latents,
        norm_pix_loss: bool = True,
        fraction: float = 1.0,
    ) -> tuple[Tensor, Tensor]:
        """Predict all patches, then mask the loss; see :meth:`CAVMAE.forward_loss`."""
        predicted_a, predicted_v = self.reconstruct(latents)
        losses = []
        for predicted, target, masking in (
            (predicted_a, patches_a, latents.masking_a),
            (predicted_v, channels_last(patches_v), latents.masking_v),
        ):
            target = normalize_patches(target) if norm_pix_loss else target
            error = ((predicted - target) ** 2).mean(dim=-1)
            losses.append((error * masking.mask).sum() / masking.mask.sum())
        return losses[0], losses[1]


def shape_of(bench: PretrainBench, way: Way) -> CAVMAEConfig:
    """Configuration of the model of a way."""
    return CAVMAEConfig(
        size=cast(Size, bench.size),
        image_height=bench.image,
        image_width=bench.image,
        audio_frames=bench.audio_frames,
        decoder=way.decoder,
    )


def synthetic_clips(count: int, audio_frames: int, image: int) -> Batch:
    """Batch of noise, as a loader gives it."""
    return {
        "key": ["made"] * count,
        "fbank": torch.randn(count, audio_frames, 128).half() * 4 - 5,
        "fbank_length": torch.full((count,), audio_frames),
        "frames": torch.randint(256, (count, 1, image, image, 3)).byte(),
    }


def _batches(bench: PretrainBench) -> Iterator[Batch]:
    """Real or synthetic batches, as a loader gives them."""
    view = View(fbank_frames=bench.audio_frames, frame_size=(bench.image, bench.image))
    if bench.data_set is not None:
        manifest = Manifest.load(bench.data_set)
        stream = TrainStream(manifest, view, bench.batch, access=Access(verify="size"))
        yield from Loader(stream, bench.workers, pin_memory=torch.cuda.is_available())
    batch = synthetic_clips(bench.batch, bench.audio_frames, bench.image)
    if torch.cuda.is_available():  # as a loader does
        batch = {k: v.pin_memory() if isinstance(v, Tensor) else v for k, v in batch.items()}
    while True:
        yield batch


def _device(bench: PretrainBench) -> str:
    gpu = torch.cuda.is_available() if bench.device == "auto" else bench.device == "cuda"
    return "cuda" if gpu else "cpu"


def training_steps(bench: PretrainBench, way: Way) -> float:
    """Seconds per clip of training steps."""
    if way.batch:
        bench = dataclasses.replace(bench, batch=way.batch)
    device = torch.device(_device(bench))
    torch.manual_seed(0)
    shape = shape_of(bench, way)
    objective = ObjectiveSettings(decode_fraction=way.fraction)
    model = ReferenceWay(shape) if way.reference else CAVMAE(shape)
    task = CAVMAETask(model, objective, DeviceTransform(Statistics(), Augmentation(noise=True)))
    task.to(device)
    if way.compile:
        compile_blocks(model, "inductor")
    optimizer: Any
    if way.reference:
        trained = [p for p in task.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam(
            trained, 5e-5, (0.95, 0.999), weight_decay=5e-7, foreach=False, fused=False
        )
    else:
        optimizer = build_optimizer(task, OptimizerSettings(name="adam", weight_decay=5e-7))
    batches = _batches(bench)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(way.precision)
    scaler = GradScaler(device.type, enabled=way.precision == "fp16")
    logged = 0.0
    for number in range(2 * bench.steps):
        if number == bench.steps:
            _synchronize(device)
            started = time.perf_counter()
        batch = {
            k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v
            for k, v in next(batches).items()
        }
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            output = task("training_step", batch)
        scaler.scale(output.loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        if way.reference:  # which logs every step
            logged += sum(float(value) for value in output.logs.values())
    _synchronize(device)
    return (time.perf_counter() - started) / (bench.steps * bench.batch)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def ways_of(bench: PretrainBench) -> dict[str, Way]:
    """All measured ways, by name."""
    usual = "bf16" if _device(bench) == "cuda" else "fp32"  # as fast as the reference's fp16
    precision = usual if bench.precision == "auto" else bench.precision
    ours = Way(precision=precision)
    cross = dataclasses.replace(ours, decoder="cross")
    fraction = f"{bench.fraction:.0%}"
    ways = {
        BASELINE: Way(reference=True, precision=usual),
        f"ours, {precision}": ours,
        f"ours, {precision}, decoder of cross-attention": cross,
        f"ours, {precision}, that decoder on {fraction} of the masked patches": dataclasses.replace(
            cross, fraction=bench.fraction
        ),
    }
    ways |= {
        f"ours, {precision}, batch {size}": dataclasses.replace(ours, batch=size)
        for size in bench.sweep
    }
    if precision != "fp32":
        ways["the reference's way, " + precision] = Way(reference=True, precision=precision)
    if bench.compile:
        ways |= {
            f"{name}, compiled": dataclasses.replace(way, compile=True)
            for name, way in list(ways.items())[1:]
            if not way.batch and not way.reference
        }
    return ways


def run(bench: PretrainBench) -> None:
    """Measure and print the table.

    Raises:
        UsageError: options that do not fit together.
    """
    if bench.size not in SIZES:
        raise UsageError(f"There is no --size {bench.size}: choose from {', '.join(SIZES)}.")
    if min(bench.batch, bench.steps, bench.rounds, *bench.sweep) < 1 or not 0 < bench.fraction <= 1:
        raise UsageError(
            "--batch, --sweep, --steps and --rounds are at least 1, --fraction in (0, 1]."
        )
    gpu = _device(bench) == "cuda"
    ways = ways_of(bench)
    results = in_turns(
        {name: (training_steps, (bench, way)) for name, way in ways.items()}, bench.rounds, gpu=gpu
    )
    name = torch.cuda.get_device_name() if gpu else "one core"
    rows = []
    for title, (seconds, peak) in results.items():
        way = ways[title]
        objective = ObjectiveSettings(decode_fraction=way.fraction)
        rate = training_flops(shape_of(bench, way), objective) / seconds
        limit = peak_flops(name, way.precision)
        mfu = f", {rate / limit:.0%} of peak" if limit else ""
        rows.append(row_of(title, seconds, peak, f"{rate / 1e12:.3g} TFLOP/s{mfu}"))
    data = "synthetic batches" if bench.data_set is None else f"batches of {bench.data_set}"
    caption = (
        f"cavmae bench pretrain: {bench.size}, {bench.image}x{bench.image}, "
        f"{bench.audio_frames} fbank frames, batch {bench.batch}, {data}, {name}"
    )
    print(table(caption, "clip", BASELINE, rows))
    base = rows[0].seconds
    for row in rows[1:]:
        if base and row.seconds:
            print(f"{base / row.seconds:5.2f} times as fast: {row.name}")
    save(rows, bench.out)
