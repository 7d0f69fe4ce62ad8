"""Objectives, optimizers, schedules, and the ways of running that must not change the result."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file
from torch.utils.flop_counter import FlopCounterMode

from cavmae.common.errors import CavmaeError
from cavmae.datasets.format.manifest import Manifest
from cavmae.datasets.stream.collate import Batch
from cavmae.datasets.stream.transforms import DeviceTransform, Statistics
from cavmae.pretrain.cavmae_task import CAVMAETask, training_flops
from cavmae.pretrain.config import CAVMAEConfig
from cavmae.pretrain.engine import checkpoints
from cavmae.pretrain.engine.optim import build_optimizer, learning_rate
from cavmae.pretrain.engine.settings import OptimizerSettings
from cavmae.pretrain.engine.task import forward_flops
from cavmae.pretrain.engine.throughput import peak_flops
from cavmae.pretrain.factory import build_model, compile_blocks
from cavmae.pretrain.frame_contrast import TimeBins, frame_contrast
from cavmae.pretrain.losses import info_nce
from cavmae.pretrain.masking import mask_from_noise
from cavmae.pretrain.model import CAVMAE
from cavmae.pretrain.settings import ModelSettings, ObjectiveSettings
from cavmae.pretrain.train import main
from tests.pretrain.engine.running import lines, trace, words

SHAPE = CAVMAEConfig(
    image_height=32, image_width=48, audio_frames=96, width=24, heads=2, depth=1, decoder_width=16,
    decoder_heads=2, decoder_depth=2, contrast_width=8,
)  # fmt: skip
OBJECTIVES: dict[str, dict[str, Any]] = {
    "CAV-MAE": {},
    "CAV": {"mae_weight": 0},
    "AV-MAE": {"contrastive_weight": 0},
    "aligned alone": {"mae_weight": 0, "contrastive_weight": 0, "aligned_weight": 1},
    "all": {"aligned_weight": 1},
    "all, whole": {"aligned_weight": 1, "contrast_view": "whole"},
    "all, a window of frames": {"aligned_weight": 1, "frame_window": 0.5},
    "CAV, whole": {"mae_weight": 0, "contrast_view": "whole"},
}


def made_batch(clips: int = 4, frames: int = 2) -> Batch:
    g = torch.Generator().manual_seed(1)
    return {
        "key": [f"k{n}" for n in range(clips)],
        "fbank": torch.randn(clips, 96, 128, generator=g).half() * 4 - 5,
        "fbank_length": torch.full((clips,), 96),
        "frames": torch.randint(256, (clips, frames, 32, 48, 3), generator=g).byte(),
        "frame_times": torch.rand(clips, frames, generator=g) * 0.96,
    }


def task_of(decoder: str = "self", seed: int = 0, **objective: Any) -> CAVMAETask:
    torch.manual_seed(seed)
    aligned = objective.get("aligned_weight", 0)
    changes = {"decoder": decoder, "contrast_width": 8 if aligned else 0}
    model = CAVMAE(CAVMAEConfig(**{**SHAPE.__dict__, **changes}))
    return CAVMAETask(
        model, ObjectiveSettings(**objective), DeviceTransform(Statistics()), frames=2
    )


def gradients(task: CAVMAETask) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in task.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("decoder", ["self", "cross"])
@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_what_is_trained_is_what_receives_gradients(name: str, learned: bool, decoder: str) -> None:
    """DDP would wait forever for a gradient that never comes."""
    task = task_of(decoder, learned_temperature=learned, hard_after=0, **OBJECTIVES[name])
    outcome = task("training_step", made_batch(), 0.6)
    outcome.loss.backward()
    trained = {name for name, p in task.named_parameters() if p.requires_grad}
    assert trained == set(gradients(task))
    moved = {name for name, gradient in gradients(task).items() if gradient.abs().sum() > 0}
    # Keys' biases change no attention: their gradient is zero up to rounding.
    assert {name for name in trained - moved if "kv.bias" not in name} == set()


def test_the_decoder_of_cross_attention_sees_visible_patches_only() -> None:
    torch.manual_seed(0)
    model = CAVMAE(CAVMAEConfig(**{**SHAPE.__dict__, "decoder": "cross"})).eval()
    fbank, image = torch.randn(2, 96, 128), torch.randn(2, 3, 32, 48)
    patches = model.patchify(fbank, image)
    masking = model.mask(2, 0.5, 0.5)
    before = model.reconstruct(model.forward_encoder(*patches, *masking))
    changed = [p.clone() for p in patches]
    for p, m in zip(changed, masking, strict=True):
        p[m.mask.bool()] += 5
    after = model.reconstruct(model.forward_encoder(*changed, *masking))
    for a, b in zip(before, after, strict=True):
        torch.testing.assert_close(a, b)
    # Each mask token stands alone: decoding some of them gives what decoding all gives.
    latents = model.forward_encoder(*patches, *masking)
    some = masking[0].ids_masked[:, 3:5], masking[1].ids_masked[:, :2]
    few = model.forward_decoder(latents, *some)
    every = model.forward_decoder(latents)
    for a, b, numbers in zip(few, every, some, strict=True):
        torch.testing.assert_close(a, b.gather(1, numbers[..., None].expand_as(a)))


def test_a_fraction_of_the_masked_patches_is_decoded() -> None:
    torch.manual_seed(0)
    model = CAVMAE(CAVMAEConfig(**{**SHAPE.__dict__, "decoder": "cross"}))
    patches = model.patchify(torch.randn(2, 96, 128), torch.randn(2, 3, 32, 48))
    latents = model.forward_encoder(*patches, *model.mask(2, 0.75, 0.75))
    whole = torch.stack(model.forward_loss(*patches, latents))
    parts = torch.stack(
        [torch.stack(model.forward_loss(*patches, latents, fraction=0.3)) for _ in range(200)]
    )
    assert parts.std(0).min() > 0
    torch.testing.assert_close(parts.mean(0), whole, rtol=0.02, atol=0)


@pytest.mark.parametrize("decoder", ["self", "cross"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_operations_are_those_that_pytorch_counts(name: str, decoder: str) -> None:
    objective = {**OBJECTIVES[name], "mask_ratio_audio": 0.5, "mask_ratio_image": 0.5}
    task = task_of(decoder, **objective)
    batch = made_batch(clips=3)
    counter = FlopCounterMode(display=False)
    with (
        counter,
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
    ):
        task("training_step", batch)
    state = torch.get_rng_state()
    # Contrasts among clips are not a clip's own work.
    assert task.flops_per_sample() == pytest.approx(counter.get_total_flops(), rel=0.02)
    assert torch.equal(state, torch.get_rng_state())


def test_operations_of_the_base_model_are_those_of_the_reference() -> None:
    macs = training_flops(CAVMAEConfig(size="base"), ObjectiveSettings()) / 6
    assert macs == pytest.approx(39.03e9, rel=0.02)
    assert macs == 38_836_145_664  # the sum of the formulas of all linear maps and attentions


@pytest.mark.parametrize("name", ["CAV", "CAV, whole", "aligned alone"])
def test_accumulating_keeps_the_negatives(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two batches of a step have the gradient of one batch of all their clips."""
    objective = {**OBJECTIVES[name], "mask_ratio_audio": 0, "mask_ratio_image": 0}
    batch = made_batch(clips=6)
    whole = task_of(hard_after=0, learned_temperature=True, **objective)
    whole("training_step", batch, 0.6).loss.backward()
    parts = task_of(hard_after=0, learned_temperature=True, **objective)
    halves = [{k: v[i : i + 3] for k, v in batch.items()} for i in (0, 3)]
    with torch.no_grad():
        pieces = [parts("embed", half) for half in halves]
    for turn, half in enumerate(halves):
        outcome = parts("training_step", half, 0.6, pieces, turn)
        outcome.loss.backward()
    ours, theirs = gradients(parts), gradients(whole)
    assert ours.keys() == theirs.keys()
    for key in ours:
        torch.testing.assert_close(ours[key], theirs[key], rtol=1e-4, atol=1e-6)


def test_accumulating_without_contrasts_averages(tmp_path: Path, data_set: Manifest) -> None:
    """The gradient of a step of three batches is as large as that of one."""
    norms = []
    for name, count in (("one", 1), ("three", 3)):
        run = run_of(
            tmp_path, data_set, name, loop={"grad_accum_steps": count, "steps": 1},
            objective={"contrastive_weight": 0, "aligned_weight": 0}, data={"frames": 1},
        )  # fmt: skip
        norms.append(lines(run)[0]["grad_norm"])
    assert 0.5 < norms[1] / norms[0] < 1.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_contrasts_are_not_computed_in_16_bits(dtype: torch.dtype) -> None:
    """Embeddings that differ little still find their partners under autocast."""
    torch.manual_seed(0)
    shared = torch.randn(1, 32)
    audio = shared + 0.02 * torch.randn(64, 32)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype != torch.float32):
        contrast = info_nce(audio, audio.clone(), torch.tensor([0.01]), both=True)
    assert contrast.loss.dtype == torch.float32
    assert float(contrast.accuracy) == 1


def test_a_learned_temperature_comes_back_from_its_limit() -> None:
    task = task_of(learned_temperature=True, temperature=0.01)
    with torch.no_grad():
        task.scale_clips += 3
    task("training_step", made_batch()).loss.backward()
    assert float(task.scale_clips.detach()) == pytest.approx(math.log(100))
    assert task.scale_clips.grad is not None
    assert task.scale_clips.grad.abs() > 0


def test_a_picture_that_stands_still_has_a_bounded_gradient() -> None:
    still = torch.randn(1, 1, 8).expand(2, 4, 8).clone().requires_grad_()
    batch = TimeBins(
        torch.randn(2, 6, 8), still, torch.arange(4).repeat(2, 1), torch.ones(2, 4) > 0
    )
    frame_contrast(batch, 0.1, centered=True).hard.backward()
    assert still.grad is not None
    assert still.grad.norm() < 1e5


def test_a_device_is_known_by_its_whole_name() -> None:
    assert peak_flops("NVIDIA H200", "bf16") == 989e12
    assert peak_flops("NVIDIA A100-SXM4-80GB", "fp32") == 19.5e12
    assert peak_flops("NVIDIA L40", "bf16") is None
    assert peak_flops("one core", "fp32") is None


def run_of(folder: Path, data_set: Manifest, name: str, **changes: Any) -> Path:
    run = folder / name
    loop = {"steps": 3, "evaluate_every": 0, **changes.pop("loop", {})}
    assert main(words(folder, run, data_set.folder, loop=loop, **changes)) == 0
    return run


def losses_of(run: Path) -> list[float]:
    return [line["loss"] for line in trace(run) if "loss" in line]


def test_ways_of_running_that_change_no_number(tmp_path: Path, data_set: Manifest) -> None:
    plain = run_of(tmp_path, data_set, "plain")
    recomputed = run_of(tmp_path, data_set, "again", loop={"checkpoint_activations": True})
    assert trace(recomputed) == trace(plain)
    AcceleratorState._reset_state(reset_partial_state=True)  # it holds one precision
    half = run_of(tmp_path, data_set, "half", loop={"precision": "bf16"})
    assert losses_of(half) == pytest.approx(losses_of(plain), rel=0.02)


@pytest.mark.long
def test_compiled_blocks_learn_the_same(tmp_path: Path, data_set: Manifest) -> None:
    plain = run_of(tmp_path, data_set, "plain")
    compiled = run_of(tmp_path, data_set, "compiled", loop={"compile": "aot_eager"})
    assert losses_of(compiled) == pytest.approx(losses_of(plain), rel=1e-4)
    names = [load_file(str(checkpoints.complete_checkpoints(r)[-1] / "model.safetensors")).keys()
             for r in (plain, compiled)]  # fmt: skip
    assert names[0] == names[1]


def test_steps_of_several_batches(tmp_path: Path, data_set: Manifest) -> None:
    run = run_of(
        tmp_path, data_set, "several", loop={"grad_accum_steps": 3, "tracker": "tensorboard"}
    )
    assert [line["samples"] for line in lines(run) if line["kind"] == "train"] == [6, 12, 18]
    assert any((run / "tensorboard").iterdir())
    records = [line for line in lines(run) if line["kind"] == "held_out"]
    assert [line["step"] for line in records] == [3]
    assert {"audio", "video_to_audio_recall_at_10", "time_bin_acc"} <= records[0].keys()


def test_averaged_weights(tmp_path: Path, data_set: Manifest) -> None:
    run = run_of(tmp_path, data_set, "run", loop={"save_every": 1, "keep": 9})
    saved = checkpoints.complete_checkpoints(run)
    assert [path.name for path in saved] == ["000000001", "000000002", "000000003"]
    weights = [load_file(str(p / "model.safetensors")) for p in saved]
    expected = dict(weights[0])
    for later in weights[1:]:
        expected = {k: 0.9 * v + 0.1 * later[k] for k, v in expected.items()}
    averaged = CAVMAE.from_pretrained(saved[-1] / "average").state_dict()
    for key, value in averaged.items():
        torch.testing.assert_close(value, expected[key], rtol=1e-5, atol=1e-6)
    with pytest.raises(CavmaeError, match=f"is the folder of a run: .* such as {saved[-1]}"):
        CAVMAE.from_pretrained(run)


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path, data_set: Manifest) -> None:
    run = run_of(tmp_path, data_set, "run", loop={"steps": 5, "save_every": 1, "keep": 2})
    assert [path.name for path in checkpoints.complete_checkpoints(run)] == [
        "000000004",
        "000000005",
    ]


def test_the_references_adam_and_adamw_without_decay_of_vectors() -> None:
    task = task_of(aligned_weight=1)
    adam = build_optimizer(task, OptimizerSettings(name="adam", beta1=0.95, weight_decay=5e-7))
    assert isinstance(adam, torch.optim.Adam)
    assert adam.defaults["betas"] == (0.95, 0.95)
    adamw = build_optimizer(task, OptimizerSettings(weight_decay=0.1))
    names = {id(p): name for name, p in task.named_parameters()}
    decayed = {names[id(p)] for g in adamw.param_groups if g["weight_decay"] for p in g["params"]}
    every = {names[id(p)] for g in adamw.param_groups for p in g["params"]}
    assert every == {name for name, p in task.named_parameters() if p.requires_grad}
    for name in every:
        vector = name.endswith((".bias", "latent", "mask_token")) or any(
            part in name for part in ("norm", "modality", "scale")
        )
        assert (name in decayed) != vector, name


def test_schedules() -> None:
    halving = OptimizerSettings(lr=1.0, schedule="halving", warmup=0)
    rates = [learning_rate(halving, epoch, 25) for epoch in range(25)]
    assert rates == [1.0] * 10 + [0.5] * 5 + [0.25] * 5 + [0.125] * 5
    finer = OptimizerSettings(
        lr=1.0, schedule="halving", warmup=0, halve_from=1 / 3, halve_every=1 / 15
    )
    rates = [learning_rate(finer, step, 15 * 7) for step in range(15 * 7)]
    assert rates == [0.5 ** max(0, step // 7 - 4) for step in range(15 * 7)]
    cosine = OptimizerSettings(lr=1.0, warmup=0.1)
    rates = [learning_rate(cosine, step, 1000) for step in range(1000)]
    assert rates[:100] == sorted(rates[:100])
    assert rates[100] == 1.0
    assert rates[100:] == sorted(rates[100:], reverse=True)
    assert rates[550] == pytest.approx(0.505, abs=0.01)
    assert rates[-1] == pytest.approx(0.01, abs=0.001)


def test_masks_are_drawn_anew_at_every_step() -> None:
    task = task_of()
    drawn = [task.model.mask(2, 0.75, 0.75)[0].ids_keep for _ in range(2)]
    assert not torch.equal(*drawn)
    noise = torch.rand(2, 48)
    assert torch.equal(mask_from_noise(noise, 0.5).ids_keep, mask_from_noise(noise, 0.5).ids_keep)


def test_weights_to_start_from(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    small = ModelSettings(size="tiny", image_height=32, image_width=32, audio_frames=96)
    first = build_model(small, ObjectiveSettings(), 0)
    first.save_pretrained(tmp_path / "first")
    larger = {**small.__dict__, "image_height": 64, "weights": str(tmp_path / "first")}
    moved = build_model(ModelSettings(**larger), ObjectiveSettings(), 1)
    assert torch.equal(moved.blocks_a[0].attn.qkv.weight, first.blocks_a[0].attn.qkv.weight)
    assert moved.pos_embed_v.shape[1] == 2 * first.pos_embed_v.shape[1]
    # What the aligned contrast adds is not among them: that has to be said.
    aligned = ObjectiveSettings(aligned_weight=1)
    with pytest.raises(CavmaeError, match=r"audio_bin_pool.* is missing"):
        build_model(ModelSettings(**larger), aligned, 1)
    build_model(ModelSettings(**{**larger, "partial": True}), aligned, 1)
    assert any("frame_pool" in message for message in caplog.messages)


def test_an_imagenet_mae_to_start_from(tmp_path: Path) -> None:
    settings = ModelSettings(size="tiny", image_height=32, image_width=32, audio_frames=96)
    model = build_model(settings, ObjectiveSettings(), 0)
    weights = {
        f"blocks.{n}.{name.removeprefix('blocks_v.0.')}": torch.randn_like(p)
        for n in range(6)
        for name, p in model.named_parameters()
        if name.startswith("blocks_v.0.")
        and "_a." not in name
        and "_v." not in name.split(".", 2)[2]
    }
    weights |= {
        "patch_embed.proj.weight": torch.randn(192, 3, 16, 16),
        "patch_embed.proj.bias": torch.randn(192),
    }
    save_file(weights, str(tmp_path / "mae.safetensors"))
    mae = ModelSettings(**{**settings.__dict__, "mae": str(tmp_path / "mae.safetensors")})
    made = build_model(mae, ObjectiveSettings(), 0)
    assert torch.equal(made.blocks_v[3].mlp.fc1.weight, weights["blocks.3.mlp.fc1.weight"])
    with pytest.raises(CavmaeError, match="no file"):
        build_model(ModelSettings(mae="nowhere.pth"), ObjectiveSettings(), 0)


def test_compiling_blocks_keeps_their_names() -> None:
    model = CAVMAE(SHAPE)
    before = list(model.state_dict())
    compile_blocks(model, "aot_eager")
    assert list(model.state_dict()) == before


def test_flops_of_attention_and_recurrent_layers_are_counted() -> None:
    """The counter sees neither the CPU's fused attention nor its fused LSTM."""
    query = torch.randn(1, 2, 10, 8)
    attention = torch.nn.functional.scaled_dot_product_attention
    assert forward_flops(lambda: attention(query, query, query)) == 2 * (2 * 2 * 10 * 10 * 8)
    lstm = torch.nn.LSTM(8, 4, bidirectional=True)
    assert forward_flops(lambda: lstm(torch.randn(6, 1, 8))) == 2 * 2 * 6 * 4 * 4 * (8 + 4)
