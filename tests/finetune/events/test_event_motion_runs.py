"""Event classifiers with a motion pathway: runs, weights, shards and recordings."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from cavmae.common.cli import run
from cavmae.common.errors import UsageError
from cavmae.datasets.format import sample
from cavmae.datasets.format.manifest import Manifest
from cavmae.datasets.stream.loader import Loader
from cavmae.datasets.stream.stream import EvalStream
from cavmae.datasets.stream.transforms import (
    DeviceTransform,
    Statistics,
)
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
from cavmae.finetune.motion.settings import ConvMotionOptions
from cavmae.finetune.train import main
from cavmae.pretrain.config import EncoderConfig
from cavmae.tools import convert, export
from tests.conftest import make_shards
from tests.finetune.events.event_clips import CLASSES, ENCODER, event_clip, event_set, several
from tests.finetune.events.test_event_motion import MOTION, config_of, model_of
from tests.finetune.events.test_event_runs import measured, train
from tests.finetune.speaker.scenes import model as speaker_model


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
    frames = record["figures"]["mean_ap"]["frames"]
    assert frames == "4 in one pass, per-frame; 25 grey ones a second"
    card_words = [str(last), "--out", str(tmp_path / "mine"), "--name", "me/mine"]
    assert export.main(card_words) == 0
    card = " ".join((tmp_path / "mine" / "README.md").read_text().split())
    assert "4 frames in one pass of 32x32 pixels and 25 grey frames a second" in card
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
    with pytest.raises(UsageError, match=r"pathway from scratch has to learn: set model.train_mot"):
        built("speaker", motion_from=None, train_motion="frozen")


def test_a_frozen_motion_pathway_stays_while_its_lateral_learns(tmp_path: Path) -> None:
    shards = event_set(tmp_path / "clips", several(6), frames=16).folder
    start = EventClassifier(config_of(encoder=EncoderConfig(**ENCODER)))
    assert start.motion_branch is not None
    start.save_pretrained(tmp_path / "start")
    (tmp_path / "start" / "preprocessing.json").write_text(
        json.dumps({"fbank_mean": -7.0, "fbank_std": 4.0, "padding": "silence"})
    )
    model = {"init_from": str(tmp_path / "start"), "train_motion": "frozen"}
    last = train(tmp_path / "run", shards, data={"roll": 0}, model=model, loop={"steps": 2})
    trained = EventClassifier.from_pretrained(last)
    assert trained.motion_branch is not None
    for name, value in start.motion_branch.state_dict().items():
        same = torch.equal(value, trained.motion_branch.state_dict()[name])
        assert same or not name.startswith("pathway."), name
    assert trained.motion_branch.proj.weight.abs().sum() > 0
    plain = EventClassifier(EventConfig(EncoderConfig(**ENCODER), CLASSES))
    plain.save_pretrained(tmp_path / "plain")
    model["init_from"] = str(tmp_path / "plain")
    with pytest.raises(UsageError, match="train_motion: the model has no motion pathway"):
        train(tmp_path / "no", shards, data={"roll": 0}, model=model)
