"""`cavmae bench pretrain`: steps of training, the reference's way against ours, in one run.

The reference's way: eager, in mixed precision on a GPU (fp32 on a CPU, where its autocast does
nothing); every patch embedded and those that stay visible picked out; attention matrices written
out; the decoder's predictions and the loss over all patches, then masked; an optimizer of separate
kernels; losses read at every step. Same mathematics as ours (tests/tools/test_bench_pretrain.py).
"""

import dataclasses
import time
from collections.abc import Iterator
from typing import Any, Literal

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
from cavmae.pretrain.cavmae_task import CAVMAETask
from cavmae.pretrain.encoder import SIZES, CAVMAEConfig, config_for_size, gather_tokens
from cavmae.pretrain.engine.optim import build_optimizer
from cavmae.pretrain.factory import compile_blocks
from cavmae.pretrain.flops import peak_flops, training_flops
from cavmae.pretrain.losses import normalize_patches
from cavmae.pretrain.model import CAVMAE, Latents, channels_last
from cavmae.pretrain.settings import ObjectiveSettings, OptimizerSettings
from cavmae.tools.benchmarks.table import in_turns, row_of, save, table

BASELINE = "the reference's way: eager, all patches decoded and predicted"


@dataclasses.dataclass(frozen=True)
class PretrainBench:
    """What is measured.

    Args:
        size: of the model: tiny, small, base or large.
        batch: clips of a step.
        steps: measured in a round, after as many that are not.
        rounds: measured in turns; medians count.
        image: side of the frames in pixels.
        audio_frames: fbank frames heard.
        data_set: folder of shards for real batches; None: made batches, which cost no loading.
        workers: that load real batches.
        device: ``auto``: a GPU if there is one.
        precision: of ours; ``auto``: bf16 on a GPU, fp32 on the CPU.
        compile: also measure ours with its blocks compiled by inductor.
        sweep: more batch sizes that the first of ours is measured with.
        fraction: of the masked patches that the cross-attention decoder decodes.
        out: JSON file for the rows.
    """

    size: str = "small"
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
    """One way of making a step; ``batch`` 0: of the benchmark's size."""

    reference: bool = False
    decoder: Literal["self", "cross"] = "self"
    fraction: float = 1.0
    precision: str = "fp32"
    compile: bool = False
    batch: int = 0


class ExplicitAttention(Attention):
    """Self-attention whose matrix of weights is written out."""

    def forward(self, x: Tensor) -> Tensor:
        """x: [N, L, D] -> [N, L, D]."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        weights = (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(dim=-1)
        projected: Tensor = self.proj((weights @ v).transpose(1, 2).flatten(2))
        return projected


class ReferenceWay(CAVMAE):
    """The same model, computed as the authors' implementation computes it."""

    def __init__(self, shape: CAVMAEConfig):
        super().__init__(shape)
        for module in list(self.modules()):
            if isinstance(module, Block):
                attention = module.attn
                module.attn = ExplicitAttention(attention.proj.in_features, attention.heads)

    def embed(self, patches: Tensor, modality: str, keep: Tensor | None = None) -> Tensor:
        """See :meth:`Encoder.embed`: all patches are embedded, then some are kept."""
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
        """See :meth:`CAVMAE.forward_loss`: all patches are predicted, then masked."""
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
    """The shape of the model that a way trains."""
    return config_for_size(
        bench.size,
        image_size=(bench.image, bench.image),
        audio_size=(128, bench.audio_frames),
        decoder=way.decoder,
    )


def made_clips(count: int, audio_frames: int, image: int) -> Batch:
    """A batch as loaded, of noise."""
    return {
        "key": ["made"] * count,
        "fbank": torch.randn(count, audio_frames, 128).half() * 4 - 5,
        "fbank_length": torch.full((count,), audio_frames),
        "frames": torch.randint(256, (count, 1, image, image, 3)).byte(),
    }


def _batches(bench: PretrainBench) -> Iterator[Batch]:
    """Real or made batches, as loaded."""
    view = View(fbank_frames=bench.audio_frames, frame_size=(bench.image, bench.image))
    if bench.data_set is not None:
        manifest = Manifest.load(bench.data_set)
        stream = TrainStream(manifest, view, bench.batch, access=Access(verify="size"))
        yield from Loader(stream, bench.workers, pin_memory=torch.cuda.is_available())
    made = made_clips(bench.batch, bench.audio_frames, bench.image)
    if torch.cuda.is_available():  # as a loader does
        made = {k: v.pin_memory() if isinstance(v, Tensor) else v for k, v in made.items()}
    while True:
        yield made


def _device(bench: PretrainBench) -> str:
    gpu = torch.cuda.is_available() if bench.device == "auto" else bench.device == "cuda"
    return "cuda" if gpu else "cpu"


def steps(bench: PretrainBench, way: Way) -> float:
    """Seconds for a clip, of training steps."""
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
    told = 0.0
    for number in range(2 * bench.steps):
        if number == bench.steps:
            _wait(device)
            started = time.perf_counter()
        batch = {
            k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v
            for k, v in next(batches).items()
        }
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            outcome = task("training_step", batch)
        scaler.scale(outcome.loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        if way.reference:  # as it logs every step
            told += sum(float(value) for value in outcome.logs.values())
    _wait(device)
    return (time.perf_counter() - started) / (bench.steps * bench.batch)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def ways_of(bench: PretrainBench) -> dict[str, Way]:
    """What is compared, by name."""
    usual = "bf16" if _device(bench) == "cuda" else "fp32"  # as fast as the reference's fp16
    precision = usual if bench.precision == "auto" else bench.precision
    ours = Way(precision=precision)
    cross = dataclasses.replace(ours, decoder="cross")
    share = f"{bench.fraction:.0%}"
    ways = {
        BASELINE: Way(reference=True, precision=usual),
        f"ours, {precision}": ours,
        f"ours, {precision}, decoder of cross-attention": cross,
        f"ours, {precision}, that decoder on {share} of the masked patches": dataclasses.replace(
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
    """Measures and prints."""
    if bench.size not in SIZES:
        raise UsageError(f"--size {bench.size}: there are {', '.join(SIZES)}.")
    if min(bench.batch, bench.steps, bench.rounds, *bench.sweep) < 1 or not 0 < bench.fraction <= 1:
        raise UsageError(
            "--batch, --sweep, --steps and --rounds are at least 1, --fraction in (0, 1]."
        )
    gpu = _device(bench) == "cuda"
    ways = ways_of(bench)
    found = in_turns(
        {name: (steps, (bench, way)) for name, way in ways.items()}, bench.rounds, gpu=gpu
    )
    name = torch.cuda.get_device_name() if gpu else "one core"
    rows = []
    for title, (seconds, peak) in found.items():
        way = ways[title]
        objective = ObjectiveSettings(decode_fraction=way.fraction)
        rate = training_flops(shape_of(bench, way), objective) / seconds
        most = peak_flops(name, way.precision)
        share = f", {rate / most:.0%} of peak" if most else ""
        rows.append(row_of(title, seconds, peak, f"{rate / 1e12:.3g} TFLOP/s{share}"))
    data = "made batches" if bench.data_set is None else f"batches of {bench.data_set}"
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
