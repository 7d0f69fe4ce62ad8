"""`cavmae bench pretrain`: pretraining steps as in the CAV-MAE reference and as in this package.

The reference's way: eager, in mixed precision on a GPU (fp32 on a CPU, where its autocast does
nothing); embeddings of all patches, then selection of the visible ones; explicit attention
matrices; predictions and loss over all patches, then masked; an optimizer of separate kernels;
losses read at every step. The mathematics is the same (tests/tools/test_bench_pretrain.py).
"""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from cavmae.common.device import device_of
from cavmae.datasets.stream.collate import Batch
from cavmae.datasets.stream.transforms import Augmentation, DeviceTransform, Statistics
from cavmae.pretrain.blocks import Attention, Block
from cavmae.pretrain.cavmae_task import CAVMAETask, training_flops
from cavmae.pretrain.config import CAVMAEConfig
from cavmae.pretrain.encoder import gather_tokens
from cavmae.pretrain.engine.optim import build_optimizer
from cavmae.pretrain.engine.settings import OptimizerSettings
from cavmae.pretrain.engine.throughput import peak_flops
from cavmae.pretrain.factory import compile_blocks
from cavmae.pretrain.losses import normalize_patches
from cavmae.pretrain.model import CAVMAE, Latents, channels_last
from cavmae.pretrain.settings import ObjectiveSettings
from cavmae.pretrain.temporal.settings import TEMPORAL
from cavmae.tools.benchmarks.settings import PretrainBench
from cavmae.tools.benchmarks.steps import StepTimes, precision_of, seconds_per_step
from cavmae.tools.benchmarks.table import in_turns, row_of, save, table

BASELINE = "the reference's way: eager, all patches decoded and predicted"
FRACTION = 0.5  # of the masked patches that the decoder of cross-attention decodes


@dataclasses.dataclass(frozen=True)
class Way:
    """Variant of a training step.

    Attributes:
        reference: computed as in the reference.
        decoder: kind of the decoder.
        fraction: of the masked patches that are decoded.
        precision: fp32, bf16 or fp16.
        compile: blocks are compiled.
        batch_size: clips of a step; 0: those of the benchmark.
        temporal: entry of the registry of temporal attentions.
        frames: of a clip.
    """

    reference: bool = False
    decoder: Literal["self", "cross"] = "self"
    fraction: float = 1.0
    precision: str = "fp32"
    compile: bool = False
    batch_size: int = 0
    temporal: str = "per-frame"
    frames: int = 1


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
        size=bench.size,
        image_height=bench.image,
        image_width=bench.image,
        audio_frames=bench.audio_frames,
        decoder=way.decoder,
        temporal=TEMPORAL.options(way.temporal)(),
        frames=way.frames,
    )


def synthetic_clips(count: int, audio_frames: int, image: int, frames: int = 1) -> Batch:
    """Batch of noise, as a loader gives it."""
    return {
        "key": ["made"] * count,
        "fbank": torch.randn(count, audio_frames, 128).half() * 4 - 5,
        "fbank_length": torch.full((count,), audio_frames),
        "frames": torch.randint(256, (count, frames, image, image, 3)).byte(),
    }


def _batches(bench: PretrainBench, frames: int) -> Iterator[Batch]:
    """The same synthetic batch again and again."""
    batch = synthetic_clips(bench.batch_size, bench.audio_frames, bench.image, frames)
    if torch.cuda.is_available():  # as a loader does
        batch = {k: v.pin_memory() if isinstance(v, Tensor) else v for k, v in batch.items()}
    return itertools.repeat(batch)


def training_steps(bench: PretrainBench, way: Way) -> float:
    """Seconds per clip of training steps, after as many warm-up steps."""
    if way.batch_size:
        bench = dataclasses.replace(bench, batch_size=way.batch_size)
    device = device_of(bench.device)
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
    times = StepTimes(bench.steps, bench.steps, way.precision, log_every_step=way.reference)
    batches = _batches(bench, way.frames)
    return seconds_per_step(task, optimizer, batches, device, times) / bench.batch_size


def ways_of(bench: PretrainBench) -> dict[str, Way]:
    """All measured ways, by name."""
    precision = precision_of(bench)
    # The reference's fp16 is as fast as bf16.
    usual = precision_of(dataclasses.replace(bench, precision="auto"))
    ours = Way(precision=precision)
    cross = dataclasses.replace(ours, decoder="cross")
    fraction = f"{FRACTION:.0%}"
    ways = {
        BASELINE: Way(reference=True, precision=usual),
        f"ours, {precision}": ours,
        f"ours, {precision}, decoder of cross-attention": cross,
        f"ours, {precision}, that decoder on {fraction} of the masked patches": dataclasses.replace(
            cross, fraction=FRACTION
        ),
    }
    ways |= {
        f"ours, {precision}, batch {size}": dataclasses.replace(ours, batch_size=size)
        for size in bench.sweep
    }
    if bench.frames > 1:
        ways |= {
            f"ours, {precision}, {bench.frames} frames, {name}": dataclasses.replace(
                ours, temporal=name, frames=bench.frames
            )
            for name in TEMPORAL
        }
    if precision != "fp32":
        ways["the reference's way, " + precision] = Way(reference=True, precision=precision)
    if bench.compile:
        ways |= {
            f"{name}, compiled": dataclasses.replace(way, compile=True)
            for name, way in list(ways.items())[1:]
            if not way.batch_size and not way.reference
        }
    return ways


def run(bench: PretrainBench) -> None:
    """Measure and print the table."""
    gpu = device_of(bench.device).type == "cuda"
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
    caption = (
        f"cavmae bench pretrain: {bench.size}, {bench.image}x{bench.image}, "
        f"{bench.audio_frames} fbank frames, batch {bench.batch_size}, synthetic batches, {name}"
    )
    print(table(caption, "clip", BASELINE, rows))
    base = rows[0].seconds
    for row in rows[1:]:
        if base and row.seconds:
            print(f"{base / row.seconds:5.2f} times as fast: {row.name}")
    save(rows, bench.out)
