"""Event classifiers with a motion pathway and laterals, from shards to recordings."""

import dataclasses
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cavmae.common.errors import SampleError
from cavmae.datasets.format import sample
from cavmae.datasets.format.sample import SampleInfo
from cavmae.datasets.stream.features import SILENCE
from cavmae.datasets.stream.transforms import (
    Augmentation,
    DeviceTransform,
    Statistics,
    apply_windows,
)
from cavmae.datasets.stream.view import View
from cavmae.finetune.events.config import EventConfig, Mode
from cavmae.finetune.events.model import EventClassifier
from cavmae.finetune.events.motion_branch import STRETCH
from cavmae.finetune.events.task import EventTask
from cavmae.finetune.laterals.settings import LATERALS
from cavmae.finetune.motion.settings import ConvMotionOptions
from cavmae.pretrain.config import EncoderConfig
from cavmae.pretrain.engine.task import forward_flops
from cavmae.pretrain.temporal.settings import JointOptions
from tests.finetune.events.event_clips import CLASSES, ENCODER

MOTION: dict[str, Any] = {"motion_height": 16, "motion_width": 16}
SMALL = ConvMotionOptions(width=8, depth=1)
MODES: tuple[Mode, ...] = ("multimodal", "video_only", "missing_audio", "missing_video")
WITH_AUDIO = [name for name in LATERALS if name != "none"]


def config_of(lateral: str = "none", frames: int = 1, **changes: Any) -> EventConfig:
    encoder = EncoderConfig(**ENCODER, frames=frames, temporal=JointOptions())
    own = {"encoder": encoder, "motion": SMALL, "lateral": LATERALS.options(lateral)()}
    return EventConfig(**{**MOTION, **own, "classes": CLASSES, **changes})


def model_of(*words: Any, used: bool = True, **changes: Any) -> EventClassifier:
    """A classifier; ``used``: what motion adds is not 0, as it is initially."""
    torch.manual_seed(0)
    model = EventClassifier(config_of(*words, **changes)).eval()
    if used and model.motion_branch is not None:
        torch.nn.init.normal_(model.motion_branch.proj.weight, generator=torch.manual_seed(1))
    return model


def clips(count: int = 2, frames: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Fbanks [N, 64, 128], frames [N, F, 3, 32, 32], grey frames uint8 [N, 16, 16, 16]."""
    rng = torch.Generator().manual_seed(3)
    grey = torch.randint(256, (count, 16, 16, 16), generator=rng, dtype=torch.uint8)
    audio = torch.randn(count, 64, 128, generator=rng)
    return audio, torch.randn(count, frames, 3, 32, 32, generator=rng), grey


# --- grey frames of stored clips ---


def stored_clip(seconds: float, rate: float) -> tuple[SampleInfo, dict[str, bytes]]:
    """Clip of 8x12 pixels, whose frames are as grey as 8 times their number."""
    times = tuple(np.arange(0, seconds - 1e-6, 1 / rate).tolist())
    info = SampleInfo(
        source="v.mp4", start=0.0, duration=seconds, labels=(), speaker=None, frame_times=times,
        frame_size=(8, 12), fbank_frames=round(seconds * 100) - 2,
    )  # fmt: skip
    members = {"json": info.to_bytes()}
    for number in range(len(times)):
        image = np.full((8, 12, 3), 8 * number, dtype=np.uint8)
        members[sample.frame_member(number)] = sample.encode_frame(image, 100)
    return info, members


@pytest.mark.parametrize(("seconds", "rate"), [(0.64, 25), (0.4, 25), (1.2, 25), (0.64, 12.5)])
def test_grey_frames_are_the_nearest_in_time(seconds: float, rate: float) -> None:
    info, members = stored_clip(seconds, rate)
    view = View(fbank=False, fbank_frames=64, frames=4, motion_size=(4, 4))
    choice = view.select(list(members), info, random.Random(0))
    arrays = choice.decode({name: members[name] for name in choice.members})
    stored = np.array(info.frame_times)
    for numbers, times in (
        (choice.motion, [0.04 * n for n in range(16)]),
        (choice.frames, [0.08, 0.24, 0.40, 0.56]),  # the middles of quarters of the length
    ):
        for number, time in zip(numbers, times, strict=True):
            gap = abs(stored[number] - time)
            assert gap <= np.abs(stored[stored < 0.64] - time).min() + 1e-6
    assert arrays["motion"].shape == (16, 4, 4) and arrays["motion"].dtype == np.uint8
    expected = 8.0 * np.array(choice.motion)
    np.testing.assert_allclose(arrays["motion"].mean((1, 2)), expected, atol=1)


@pytest.mark.parametrize("motion", [None, (4, 4)])
def test_frames_of_a_longer_clip_are_of_the_audio_that_is_heard(motion: Any) -> None:
    info, members = stored_clip(2.0, 12.5)
    within = sum(time < 0.64 for time in info.frame_times)
    for frames in ("random", "middle", "all", 1, 4):
        view = View(fbank_frames=64, frames=frames, motion_size=motion)
        assert view.needs_info
        drawn = {
            n for s in range(60) for n in view.select([*members], info, random.Random(s)).frames
        }
        assert drawn <= {*range(within)}
        assert drawn == {*range(within)} or frames not in ("random", "all")
    whole = View(fbank=False, fbank_frames=64, frames="all")
    assert len(whole.select([*members], None, random.Random(0)).frames) == 25


def test_a_clip_without_frames_has_no_motion() -> None:
    info, _ = stored_clip(0.64, 25)
    view = View(fbank=False, fbank_frames=64, frames="none", motion_size=(4, 4))
    silent = dataclasses.replace(info, frame_times=())
    with pytest.raises(SampleError, match="no frames"):
        view.select(["json"], silent, random.Random(0))


def test_a_random_frame_is_one_of_the_time_that_grey_frames_show() -> None:
    info, members = stored_clip(1.2, 25)
    view = View(fbank=False, fbank_frames=64, frames="random", motion_size=(4, 4))
    drawn = {view.select(list(members), info, random.Random(n)).frames[0] for n in range(200)}
    assert drawn == {*range(16)}


def test_grey_frames_are_cropped_and_mixed_as_frames_are() -> None:
    transform = DeviceTransform(Statistics(), Augmentation(crop=0.5, flip=True, mixup=1.0)).train()
    grey = torch.randint(256, (6, 3, 16, 16), dtype=torch.uint8)
    batch = {
        "key": list("abcdef"), "labels": torch.eye(6), "motion": grey,
        "frames": grey[..., None].expand(-1, -1, -1, -1, 3).contiguous(),
    }  # fmt: skip
    torch.manual_seed(5)
    result = transform(batch)
    mean, std = torch.tensor([0.485, 0.456, 0.406]) * 255, torch.tensor([0.229, 0.224, 0.225]) * 255
    channels = result["frames"].movedim(2, -1) * std + mean
    torch.testing.assert_close(channels[..., 1], result["motion"], atol=0.01, rtol=0)
    assert not torch.allclose(result["motion"], grey.float(), atol=5)
    assert torch.equal(transform.eval()(batch)["motion"], grey)
    windows = torch.eye(2, 3).expand(6, -1, -1)
    same = apply_windows(grey[:, :, None].float(), windows, "bilinear")[:, :, 0]
    torch.testing.assert_close(same, grey.float(), atol=0.01, rtol=0)


# --- the model ---


@pytest.mark.parametrize("frames", [1, 4])
@pytest.mark.parametrize("lateral", list(LATERALS))
@torch.no_grad()
def test_motion_adds_to_the_frames_in_each_mode(lateral: str, frames: int) -> None:
    audio, images, grey = clips(frames=frames)
    fresh = model_of(lateral, frames, used=False)
    plain = model_of(frames=frames, motion_height=0, motion_width=0)
    plain.load_state_dict(fresh.state_dict(), strict=False)
    model = model_of(lateral, frames)
    modes = MODES if lateral == "none" else (*MODES[:1], *MODES[2:])
    count = frames * 4
    motion = fresh.motion_features(grey, "multimodal")
    # Audio may join the tokens of frames, too; without it, initially, nothing is added to them.
    for fbank in (audio, None) if lateral in ("none", "a-f-s") else ():
        tokens = fresh._video_tokens(images, motion, fbank, None)
        assert torch.equal(tokens[:, :count], plain._video_tokens(images, None, None, None))
        assert tokens.shape[1] == count + 16 // STRETCH
    for mode in modes:
        own = (audio, images, mode)
        if mode == "missing_video":
            assert torch.equal(fresh.forward_frames(*own, grey), plain.forward_frames(*own))
        logits = model.forward_frames(*own, grey)
        torch.testing.assert_close(logits[:, 0], model(audio, images, mode, grey))
        moved = model(audio, images, mode, grey.flip(1)) - logits[:, 0]
        assert (float(moved.abs().max()) > 1e-5) == (mode != "missing_video")
        louder = model(audio + 1, images, mode, grey) - logits[:, 0]
        assert (float(louder.abs().max()) > 1e-5) == (mode in ("multimodal", "missing_video"))


@torch.no_grad()
def test_passes_over_frames_agree_with_each_frame_alone() -> None:
    audio, images, grey = clips(frames=3)
    model = model_of("av-nonlocal")
    for mode in ("multimodal", "missing_audio"):
        each = [model(audio, frame, mode, grey) for frame in images.unbind(1)]
        passes = model.forward_frames(audio, images, mode, grey)
        torch.testing.assert_close(passes, torch.stack(each, dim=1))
    with pytest.raises(ValueError, match=r"grey frames of \(16, 16, 16\), not \(15, 16, 16\)"):
        model(audio, images[:, 0], "multimodal", grey[:, 1:])
    with pytest.raises(ValueError, match="not None"):
        model(audio, images[:, 0])


def batch_of(count: int = 4, frames: int = 1) -> dict[str, Any]:
    rng = torch.Generator().manual_seed(7)
    shape = count, frames, 32, 32, 3
    return {
        "key": [f"k{n}" for n in range(count)],
        "labels": torch.eye(3)[torch.arange(count) % 3],
        "fbank": torch.randn(count, 64, 128, generator=rng),
        "frames": torch.randint(256, shape, generator=rng, dtype=torch.uint8),
        "motion": torch.randint(256, (count, 16, 16, 16), generator=rng, dtype=torch.uint8),
    }


@pytest.mark.parametrize("frozen_motion", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("lateral", list(LATERALS))
def test_exactly_what_learns_gets_a_gradient(
    lateral: str, frozen: bool, frozen_motion: bool
) -> None:
    model = model_of(lateral).train()
    weight = 0.0 if lateral == "none" else 0.5
    task = EventTask(
        model, DeviceTransform(Statistics(0.0, 1.0)), frozen, frozen_motion, head_lr_scale=10,
        sync_weight=weight,
    )  # fmt: skip
    keeping = next(p for p in np.arange(0, 1, 0.01) if gate_of(task, float(p)) != 0)
    output = task("training_step", batch_of(), float(keeping), (), 0)
    output.loss.backward()
    assert (weight > 0) == ("sync" in output.logs)
    for name, parameter in task.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        own = "motion_branch" in name or "mlp_head" in name or name.startswith("sync.")
        assert task.lr_scale(name) == (10 if own else 1), name
        fixed = frozen_motion and "motion_branch.pathway" in name
        assert not (fixed and parameter.requires_grad), name
        assert not frozen or parameter.requires_grad == (own and not fixed), name


def test_padding_is_silence_to_the_synchronisation_loss_whatever_is_added_to_it() -> None:
    spoiled = Augmentation(noise=True, freq_mask=24, time_mask=32)
    task = EventTask(
        model_of("a-fs").train(), DeviceTransform(Statistics(-8.0, 4.0), spoiled), sync_weight=0.5
    )
    batch = batch_of()
    output = task("training_step", batch, 0.5, (), 0)
    assert float(output.logs["sync"]) > 0
    output = task("training_step", batch | {"fbank": torch.full((4, 64, 128), SILENCE)}, 0.5, (), 0)
    assert float(output.logs["sync"]) == 0


def test_a_frozen_pathway_costs_no_backward_pass() -> None:
    learning, frozen = (
        EventTask(model_of(), DeviceTransform(Statistics()), frozen_motion=chosen)
        for chosen in (False, True)
    )
    motion = batch_of()["motion"][:1]
    pathway = forward_flops(lambda: frozen.model.motion_features(motion, "multimodal"))
    assert pathway > 0
    spared = learning.flops_per_sample() - frozen.flops_per_sample()
    assert spared == pytest.approx(2 * pathway)


def gate_of(task: EventTask, progress: float) -> float:
    gate = task._audio_gate(progress, batch_of())
    return 1.0 if gate is None else float(gate[0])


def test_audio_is_dropped_in_most_steps_and_the_same_in_all_processes() -> None:
    def gates(seed: int) -> list[float]:
        task = EventTask(model_of("a-f-s"), DeviceTransform(Statistics()), seed=seed)
        return [gate_of(task, step / 200) for step in range(200)]

    assert gates(0) == gates(0) != gates(1)
    assert 0.7 < gates(0).count(0.0) / 200 < 0.9
    model = model_of("a-f-s")
    audio, images, grey = clips()
    off = torch.zeros(2)
    features = model.motion_features(grey, "multimodal")
    without = model.tokens(audio, images, "multimodal", features, off)
    kept = model.tokens(audio, images, "multimodal", features)
    assert not torch.allclose(without, kept, atol=1e-4)


def test_a_clip_is_no_negative_of_itself() -> None:
    """Drawn twice, and mixed with others, a clip is neither its own negative nor another's twin."""
    task = EventTask(model_of("a-f-s"), DeviceTransform(Statistics(0.0, 1.0)), sync_weight=1.0)
    batch = batch_of(2)
    batch["key"] = ["k0", "k0"]
    output = task("training_step", batch, 0.1, (), 0)
    assert float(output.logs["sync"]) == 0
    batch["key"] = ["k0", "k1"]
    assert float(task("training_step", batch, 0.1, (), 0).logs["sync"]) > 0.1


def test_it_learns_what_only_motion_tells() -> None:
    """Grey noise that changes in each frame, or never: a single frame tells nothing."""
    rng = torch.Generator().manual_seed(0)

    def batch(count: int) -> dict[str, Any]:
        result = batch_of(count)
        grey = torch.randint(256, (count, 16, 16, 16), generator=rng, dtype=torch.uint8)
        grey[::2] = grey[::2, :1]
        still = torch.arange(count) % 2 == 0
        result["labels"] = torch.stack([still, ~still, still], dim=1).float()
        result["motion"] = grey
        result["fbank"].zero_()
        result["frames"] = grey[:, 8, :, :, None].repeat(1, 2, 2, 3)[:, None]
        return result

    task = EventTask(model_of(used=False), DeviceTransform(Statistics(0.0, 1.0))).train()
    optimizer = torch.optim.Adam([p for p in task.parameters() if p.requires_grad], 3e-3)
    for step in range(80):
        loss = task("training_step", batch(12), step / 80, (), 0).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    record = task.eval()("validation_step", batch(60))
    assert task.aggregate([record])["mean_ap"] > 0.95


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"motion_height": 18}, "motion_height 18: a multiple of 4 from 16 to 32"),
        ({"motion_height": 12}, "motion_height 12: a multiple of 4 from 16 to 32"),
        ({"motion_width": 36}, "motion_width 36"),
        ({"motion_width": 20}, "in their shape"),
        ({"modalities": "audio_only"}, "a motion pathway needs video"),
        ({"modalities": "video_only", "lateral": "a-f-s"}, "audio, too"),
        (
            {"motion_height": 0, "motion_width": 0, "lateral": "a-f-s"},
            "lateral a-f-s connects audio with a motion pathway: set motion_height",
        ),
    ],
)
def test_pathways_that_make_no_model(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_of(**changes)


def test_frames_that_do_not_divide_the_grey_ones() -> None:
    with pytest.raises(ValueError, match=r"encoder.frames 3: a motion pathway needs"):
        config_of(frames=3)
