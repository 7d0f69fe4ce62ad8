"""Event classifiers that take several frames of a clip in one pass."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import Tensor

from cavmae.common.cli import run
from cavmae.common.errors import UsageError
from cavmae.datasets.stream.transforms import Augmentation, DeviceTransform, Statistics
from cavmae.finetune.events.config import EventConfig, Mode
from cavmae.finetune.events.data import event_view
from cavmae.finetune.events.factory import build_events, load_events
from cavmae.finetune.events.labels import ClassList
from cavmae.finetune.events.model import EventClassifier, uses_video
from cavmae.finetune.events.settings import EventEncoderSettings, EventModelSettings
from cavmae.finetune.events.task import EventTask
from cavmae.finetune.train import main
from cavmae.pretrain.config import CAVMAEConfig, EncoderConfig
from cavmae.pretrain.model import CAVMAE
from cavmae.pretrain.temporal.base import temporal_parameters
from cavmae.pretrain.temporal.settings import TEMPORAL
from cavmae.tools import evaluate
from tests.finetune.events.event_clips import CLASSES, ENCODER, event_set, several

FRAMES = 3
NAMES = list(TEMPORAL)
MIXING = [name for name in NAMES if name != "per-frame"]
MODES: tuple[Mode, ...] = (
    "multimodal", "audio_only", "video_only", "missing_audio", "missing_video",
)  # fmt: skip
LIST = ClassList(CLASSES, {}, "a test")


def model_of(name: str, frames: int = FRAMES, **changes: Any) -> EventClassifier:
    torch.manual_seed(0)
    encoder = EncoderConfig(**ENCODER, temporal=TEMPORAL.options(name)(), frames=frames)
    return EventClassifier(EventConfig(encoder, CLASSES, **changes)).eval()


def clips(frames: int = FRAMES) -> tuple[Tensor, Tensor]:
    """Fbanks [2, 64, 128] and frames [2, F, 3, 32, 32]."""
    rng = torch.Generator().manual_seed(3)
    return torch.randn(2, 64, 128, generator=rng), torch.randn(2, frames, 3, 32, 32, generator=rng)


def settings_of(name: str, **changes: Any) -> EventModelSettings:
    shape = {"temporal": TEMPORAL.options(name)(), "frames": FRAMES}
    encoder = EventEncoderSettings(**{**shape, **changes.pop("encoder", {})})
    return EventModelSettings(encoder=encoder, **changes)


@torch.no_grad()
def test_frames_that_do_not_mix_agree_with_a_loop_over_frames() -> None:
    """The video branch by a loop; the joint blocks take the audio and all frames as one."""
    model, single = model_of("per-frame"), model_of("per-frame", 1)
    single.load_state_dict(model.state_dict())
    audio, frames = clips()
    each = [single.tokens(None, frame, "video_only") for frame in frames.unbind(1)]
    torch.testing.assert_close(model.tokens(None, frames, "video_only"), torch.cat(each, dim=1))
    branches = [single.forward_branch(single.patchify_audio(audio), "a")]
    branches += [single.forward_branch(single.patchify_image(f), "v") for f in frames.unbind(1)]
    joint = single.forward_joint(torch.cat(branches, dim=1), None)
    torch.testing.assert_close(model(audio, frames), single.mlp_head(joint.mean(dim=1)))
    alone = single.forward_joint(torch.cat(branches[1:], dim=1), None)
    expected = single.mlp_head((torch.cat(each, dim=1) + alone).mean(dim=1) / 2)
    # The passes of the reference: the norms of video, and those of both, of the same tokens.
    alone_v = torch.cat([single.forward_joint(b, "v") for b in branches[1:]], dim=1)
    torch.testing.assert_close(alone_v, torch.cat(each, dim=1))
    torch.testing.assert_close(model(None, frames, "missing_audio"), expected)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_one_pass_takes_all_frames_in_each_mode(name: str) -> None:
    model = model_of(name, pooling="attention")
    audio, frames = clips()
    for mode in MODES:
        logits = model.forward_frames(audio, frames, mode)
        assert logits.shape == (2, 1, 3)
        assert torch.equal(logits[:, 0], model(audio, frames, mode))
        changed = frames.clone()
        changed[:, -1] += 1
        moved = model(audio, changed, mode) - logits[:, 0]
        assert (float(moved.abs().max()) > 1e-5) == uses_video(mode)
    for count in (1, 2):
        with pytest.raises(ValueError, match=f"takes 3 frames of a clip at once, not {count}"):
            model(audio, frames[:, :count])


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_model_of_one_frame_is_per_frame_to_the_bit(name: str) -> None:
    plain, own = model_of("per-frame", 1), model_of(name, 1)
    own.load_state_dict(plain.state_dict(), strict=False)
    audio, frames = clips()
    for mode in MODES:
        expected = plain.forward_frames(audio, frames, mode)
        assert torch.equal(own.forward_frames(audio, frames, mode), expected)


@pytest.mark.parametrize("frames", [1, FRAMES])
@pytest.mark.parametrize("name", NAMES)
def test_exactly_what_learns_gets_a_gradient(name: str, frames: int) -> None:
    """DDP would wait for the others; crop, flip and mixup of several frames run beside."""
    augmentation = Augmentation(mixup=1.0, crop=0.5, flip=True, label_smoothing=0.1)
    rng = torch.Generator().manual_seed(1)
    batch = {
        "key": ["a", "b"],
        "fbank": torch.randn(2, 64, 128, generator=rng).half(),
        "fbank_length": torch.tensor([64, 50]),
        "waveform": torch.randint(-9999, 9999, (2, 10_240), generator=rng).short(),
        "waveform_length": torch.tensor([10_240, 8_000]),
        "frames": torch.randint(256, (2, frames, 32, 32, 3), generator=rng).byte(),
        "labels": torch.eye(3)[:2],
    }
    modalities: tuple[Any, ...] = ("multimodal", "audio_only", "video_only")
    for modality in modalities:
        model = model_of(name, frames, modalities=modality)
        transform = DeviceTransform(Statistics(), augmentation)
        task = EventTask(model, transform, learned_positions=True).train()
        task("training_step", batch).loss.backward()
        for key, parameter in task.named_parameters():
            assert parameter.requires_grad == (parameter.grad is not None), (modality, key)
        learns = bool(temporal_parameters(model)) and frames > 1 and modality != "audio_only"
        trained = [p.requires_grad for p in temporal_parameters(model).values()]
        assert any(trained) == learns
        assert task.flops_per_sample() > 0


@pytest.mark.parametrize("name", MIXING)
def test_classes_that_differ_in_the_order_of_their_frames(name: str) -> None:
    """Which no single frame tells, nor a mean over them."""
    model = model_of(name, 2, modalities="video_only").train()
    rng = torch.Generator().manual_seed(0)
    first = torch.tensor([0, 1] * 8)
    frames = torch.randn(16, 2, 3, 32, 32, generator=rng) * 0.1
    frames[torch.arange(16), first] += 1
    optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), 3e-3)
    for _ in range(80):
        loss = torch.nn.functional.cross_entropy(model(None, frames, "video_only"), first)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 0.1


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_weights_of_one_frame_start_each_attention(name: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    config = CAVMAEConfig(**ENCODER, decoder_width=16, decoder_heads=2, decoder_depth=1)
    CAVMAE(config).save_pretrained(tmp_path / "encoder")
    before = CAVMAE.from_pretrained(tmp_path / "encoder").state_dict()
    settings = settings_of(name, encoder_from=str(tmp_path / "encoder"))
    model = build_events(settings, LIST, None, 0)
    own = model.state_dict()
    fresh = {*temporal_parameters(model), *model.frame_positions()}
    assert (model.config.encoder.frames, model.config.encoder.temporal.name) == (FRAMES, name)
    for key in own.keys() - fresh:
        if not key.startswith("mlp_head"):
            assert torch.equal(own[key], before[key]), key
    initial = build_events(settings_of(name, encoder=ENCODER), LIST, None, 0).state_dict()
    for key in fresh:  # as their constructors leave them, some of them random
        torch.testing.assert_close(own[key].std(), initial[key].std(), rtol=0.1, atol=1e-6)
    # A classifier of several frames starts one of another number, with the same attention.
    model.save_pretrained(tmp_path / "events")
    if name != "per-frame":
        plain = {"temporal": TEMPORAL.options("per-frame")()}
        again = settings_of(name, init_from=str(tmp_path / "events"), encoder=plain)
        with pytest.raises(UsageError, match=f"attention {name}, the model per-frame: set"):
            build_events(again, LIST, load_events(again.init_from or ""), 0)
    again = settings_of(name, init_from=str(tmp_path / "events"), encoder={"frames": 5})
    longer = build_events(again, LIST, load_events(again.init_from or ""), 0)
    assert (longer.config.encoder.frames, longer.config.encoder.temporal.name) == (5, name)
    for key in own.keys() - {"pos_embed_t"}:
        assert torch.equal(longer.state_dict()[key], own[key]), key


def test_weights_of_another_attention(tmp_path: Path) -> None:
    model_of("joint").save_pretrained(tmp_path / "events")
    settings = settings_of("divided", encoder_from=str(tmp_path / "events"))
    with pytest.raises(UsageError, match="attention joint, the model divided: set"):
        build_events(settings, LIST, None, 0)


def test_views_follow_the_model() -> None:
    one, many = (model_of("joint", frames).config for frames in (1, FRAMES))
    views = [event_view(config, "multimodal", "zero", t).frames for config in (one, many)
             for t in (True, False)]  # fmt: skip
    assert views == ["random", 1, FRAMES, FRAMES]
    assert event_view(one, "multimodal", "zero", frames=10).frames == 10
    assert event_view(many, "audio_only", "zero").frames == "none"


def test_a_run_and_its_evaluation(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """Clips of two frames for a model of three: one of theirs is repeated, which is counted."""
    shards = event_set(tmp_path / "clips", several(8), frames=2).folder
    encoder = {**{key: str(value) for key, value in ENCODER.items()},
               "frames": str(FRAMES), "temporal": "trajectory"}  # fmt: skip
    words = [
        "events", "--config", "small-set", "--out", str(tmp_path / "run"), "--data.train", shards,
        "--data.held-out", shards, "--data.workers", "0", "--data.batch-size", "4",
        *(word for name, value in encoder.items() for word in (f"--model.encoder.{name}", value)),
        "--data.mixup-prob", "1", "--loop.epochs", "15", "--loop.threads", "1",
        "--loop.tracker", "none",
    ]  # fmt: skip
    assert main(words) == 0
    AcceleratorState._reset_state(reset_partial_state=True)
    last = str(sorted((tmp_path / "run/checkpoints").iterdir())[-1])
    options = [shards, "--model", last, "--workers", "0", "--out", str(tmp_path / "out")]
    with caplog.at_level(logging.WARNING, "cavmae"):
        assert run(evaluate.main, options) == 0
    assert "8 clips have fewer than 3 frames: some of theirs count twice" in caplog.text
    figure = json.loads((tmp_path / "out/events.json").read_text())["figures"]["mean_ap"]
    assert figure["frames"] == "3 in one pass, trajectory"
    assert run(evaluate.main, [*options, "--frames", "3"]) == 0
    assert json.loads((tmp_path / "out/events.json").read_text())["figures"]["mean_ap"] == figure
    capsys.readouterr()
    for count in ("1", "10"):
        assert run(evaluate.main, [*options, "--frames", count]) == 2
        message = f"--frames {count}: the model takes 3 frames of a clip in one pass; leave it out."
        assert message in capsys.readouterr().err
    options[-1] = str(tmp_path / "sound")
    assert run(evaluate.main, [*options, "--mode", "missing_video"]) == 0
    assert run(evaluate.main, [*options, "--mode", "missing_video", "--frames", "3"]) == 2
