"""Event classifiers with a motion pathway and laterals, from shards to recordings."""

import dataclasses
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from torch import Tensor

from cavmae.common.cli import run
from cavmae.common.errors import SampleError, UsageError
from cavmae.datasets.format import sample
from cavmae.datasets.format.manifest import Manifest
from cavmae.datasets.format.sample import SampleInfo
from cavmae.datasets.stream.loader import Loader
from cavmae.datasets.stream.stream import EvalStream
from cavmae.datasets.stream.transforms import (
    Augmentation,
    DeviceTransform,
    Statistics,
    apply_windows,
)
from cavmae.datasets.stream.view import View
from cavmae.finetune.events.config import EventConfig, Mode
from cavmae.finetune.events.data import event_view
from cavmae.finetune.events.factory import build_events
from cavmae.finetune.events.labels import ClassList
from cavmae.finetune.events.model import EventClassifier
from cavmae.finetune.events.settings import EventEncoderSettings, EventModelSettings
from cavmae.finetune.events.task import EventTask
from cavmae.finetune.inference.event_model import load_task
from cavmae.finetune.inference.event_predictor import EventPredictor
from cavmae.finetune.inference.event_settings import PredictSettings
from cavmae.finetune.laterals.settings import LATERALS
from cavmae.finetune.motion.settings import ConvMotionOptions
from cavmae.finetune.train import main
from cavmae.pretrain.config import EncoderConfig
from cavmae.pretrain.temporal.settings import JointOptions
from cavmae.tools import convert
from tests.conftest import make_shards
from tests.finetune.events.event_clips import CLASSES, ENCODER, event_clip, event_set, several
from tests.finetune.events.test_event_runs import measured, train
from tests.finetune.speaker.scenes import model as speaker_model

MOTION: dict[str, Any] = {"motion_height": 16, "motion_width": 16}
SMALL = ConvMotionOptions(width=8, depth=1)
MODES: tuple[Mode, ...] = ("multimodal", "video_only", "missing_audio", "missing_video")
WITH_AUDIO = [name for name in LATERALS if name != "none"]


@pytest.fixture(autouse=True)
def no_accelerator() -> Any:
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


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
    for mode in modes:
        own = (audio, images, mode)
        # Audio may join the tokens of frames, too; without it the sum is the same to the bit.
        if lateral in ("none", "a-f-s") or mode == "missing_video":
            logits = fresh.forward_frames(*own, grey)
            assert torch.equal(logits, plain.forward_frames(*own))
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


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("lateral", list(LATERALS))
def test_exactly_what_learns_gets_a_gradient(lateral: str, frozen: bool) -> None:
    model = model_of(lateral).train()
    weight = 0.0 if lateral == "none" else 0.5
    task = EventTask(
        model, DeviceTransform(Statistics(0.0, 1.0)), frozen, head_lr_scale=10, sync_weight=weight
    )
    keeping = next(p for p in np.arange(0, 1, 0.01) if gate_of(task, float(p)) != 0)
    output = task("training_step", batch_of(), float(keeping), (), 0)
    output.loss.backward()
    assert (weight > 0) == ("sync" in output.logs)
    for name, parameter in task.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        own = "motion_branch" in name or "mlp_head" in name or name.startswith("sync.")
        assert task.lr_scale(name) == (10 if own else 1), name
        assert not frozen or parameter.requires_grad == own, name


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


# --- runs, evaluation and recordings ---


def test_a_run_with_a_lateral_and_synchronisation(tmp_path: Path) -> None:
    shards = event_set(tmp_path / "clips", several(6), frames=16).folder
    model = {"encoder": {**ENCODER, "frames": 4}, **MOTION, "motion": {"name": "conv", "width": 8}}
    model["lateral"] = {"name": "a-fs", "drop_prob": 0.5}
    data, loop = {"roll": 0, "held_out": shards}, {"epochs": 2}
    last = train(
        tmp_path / "run", shards, data=data, model=model, loop=loop, loss={"sync_weight": 0.1}
    )
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert all("sync" in line for line in lines if line["kind"] == "train")
    record = measured(shards, last, tmp_path / "out")
    assert record["figures"]["mean_ap"]["value"] > 0
    # On with the same pathways; and as an encoder, whose pathways are new.
    train(tmp_path / "on", shards, data=data, loop=loop, model={"init_from": str(last)})
    with pytest.raises(UsageError, match=r"data.roll 3 shifts audio against video, which lateral"):
        train(tmp_path / "no", shards, data={"roll": 3}, model={"init_from": str(last)})
    model = {"encoder_from": str(last), **MOTION, "motion": {"name": "x3d", "width": 8}}
    train(tmp_path / "new", shards, data=data, loop=loop, model=model)


def test_the_published_format_has_no_motion_pathway(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last = tmp_path / "model"
    encoder = EncoderConfig(**ENCODER)
    EventClassifier(config_of(encoder=encoder)).save_pretrained(last)
    assert run(convert.main, [str(last), "--out", str(tmp_path / "x.pth")]) == 2
    assert "has a motion pathway" in capsys.readouterr().err


def test_shards_of_too_few_frames(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = event_set(tmp_path / "clips", several(4), frames=3).folder
    base = ["events", "--out", str(tmp_path / "run"), "--data.train", shards, "--data.roll", "0"]
    for name, value in ENCODER.items():
        base += [f"--model.encoder.{name.replace('_', '-')}", str(value)]
    base += ["--model.motion-height", "16", "--model.motion-width", "16"]
    assert run(main, base) == 2
    assert "have 4.6 frames a second" in (error := capsys.readouterr().err)
    assert "--frame-rate 25" in error
    assert run(main, [*base, "--data.roll", "5", "--model.lateral", "a-fs"]) == 2
    assert "data.roll 5 shifts audio against video" in capsys.readouterr().err
    with pytest.raises(UsageError, match=r"loss.sync_weight needs an audio pathway"):
        EventTask(model_of(), DeviceTransform(Statistics()), sync_weight=1.0)


@pytest.mark.parametrize("frames", [1, 4])
def test_windows_of_a_recording_are_the_clips_of_an_evaluation(
    video: Callable[..., Path], tmp_path: Path, frames: int
) -> None:
    model = model_of("a-f-s", frames)
    folder = tmp_path / "000000001"
    model.save_pretrained(folder)
    record = {"fbank_mean": -7.0, "fbank_std": 4.0, "padding": "silence"}
    (folder / "preprocessing.json").write_text(json.dumps(record))
    path = video(seconds=1.6, audio="pcm_s16le", name="a.mkv", size=(48, 32), fps=25)
    out = tmp_path / "shards"
    assert make_shards(
        str(path), out, profile="events", clip_seconds=0.64, min_seconds=0.3, tail="keep",
        shorter_side=32, frame_rate=25,
    ) == 0  # fmt: skip
    task = load_task(str(folder)).eval()
    view = event_view(task.model.config, "multimodal", "silence")
    batches = list(Loader(EvalStream(Manifest.load(str(out)), view, 4), 0))
    predictor = EventPredictor.from_pretrained(str(folder), "cpu")
    seen: list[dict[str, Any]] = []
    probs = predictor._task.probs

    def spy(batch: dict[str, Any], mode: Mode) -> Tensor:
        seen.append(batch)
        return probs(batch, mode)

    predictor._task.probs = spy  # type: ignore[method-assign]
    prediction = predictor.predict(path, PredictSettings(hop=1.0))
    grey, stored = (torch.cat([b["motion"] for b in part]).float() for part in (seen, batches))
    assert grey.shape == (3, 16, 16, 16)
    torch.testing.assert_close(grey[:2], stored[:2], atol=12, rtol=0)
    assert float((grey[:2] - stored[:2]).abs().mean()) < 2
    assert len(prediction.timeline.probs) == 3


def test_grey_values_are_those_of_the_picture() -> None:
    _, members = event_clip(0, ["dog"], frames=1)
    image = np.asarray(Image.fromarray(sample.decode_frame(members["000.jpg"])).convert("L"))
    grey = sample.decode_frame(members["000.jpg"], grey=True)
    np.testing.assert_allclose(grey.astype(float), image.astype(float), atol=2)


def test_weights_of_a_motion_pathway_come_from_another_model(tmp_path: Path) -> None:
    speaker = speaker_model()
    speaker.save_pretrained(tmp_path / "speaker")
    options = speaker.config.motion
    encoder = EventEncoderSettings(**ENCODER)
    classes = ClassList(CLASSES, {}, "a test")

    def built(name: str, **changes: Any) -> EventClassifier:
        own = {**MOTION, "motion": options, "motion_from": str(tmp_path / name), **changes}
        return build_events(EventModelSettings(encoder=encoder, **own), classes, None, 0)

    first = built("speaker")
    assert first.motion_branch is not None
    for name, value in first.motion_branch.pathway.state_dict().items():
        assert torch.equal(value, speaker.motion.state_dict()[name])
    other = built("speaker", motion_from=None)
    assert other.motion_branch is not None
    assert torch.equal(first.mlp_head[1].weight, other.mlp_head[1].weight)
    first.save_pretrained(tmp_path / "events")
    second = built("events")
    assert second.motion_branch is not None
    for name, value in second.motion_branch.pathway.state_dict().items():
        assert torch.equal(value, speaker.motion.state_dict()[name])
    with pytest.raises(UsageError, match=r"has the pathway \{'name': 'conv'.*: set model.motion"):
        built("speaker", motion=ConvMotionOptions(width=12))
    EventClassifier(EventConfig(EncoderConfig(**ENCODER), CLASSES)).save_pretrained(
        tmp_path / "plain"
    )
    with pytest.raises(UsageError, match="has no motion pathway"):
        built("plain")
    with pytest.raises(UsageError, match="for a motion pathway that is new: set"):
        built("speaker", motion_height=0, motion_width=0)
