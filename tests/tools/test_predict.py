"""`cavmae predict`: events over time in any recording."""

import contextlib
import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from cavmae.common.cli import run
from cavmae.common.errors import CavmaeError, UsageError
from cavmae.datasets.format.manifest import Manifest
from cavmae.datasets.media import probe
from cavmae.datasets.media.audio_reader import AudioReader
from cavmae.datasets.media.frames import open_decoder
from cavmae.datasets.stream.features import fbank, to_float, to_int16
from cavmae.datasets.stream.loader import Loader
from cavmae.datasets.stream.stream import EvalStream
from cavmae.finetune.events.config import EventConfig
from cavmae.finetune.events.data import event_view
from cavmae.finetune.events.model import EventClassifier
from cavmae.finetune.inference.event_model import load_task
from cavmae.finetune.inference.event_predictor import EventPredictor
from cavmae.finetune.inference.event_settings import PredictSettings
from cavmae.finetune.inference.event_timeline import EventTimeline, WindowPlan
from cavmae.finetune.inference.event_windows import EventWindows, cover, frame_indices
from cavmae.pretrain.config import EncoderConfig
from cavmae.tools.predict import main
from tests.conftest import make_shards
from tests.datasets.recordings import Track, audio_frames, sweep, video_frames, write
from tests.finetune.events.event_clips import CLASSES, ENCODER

Maker = Callable[..., Path]
SECONDS = 0.64  # of a window


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An untrained classifier whose output depends on its input."""
    return classifier_in(tmp_path_factory.mktemp("model") / "000000001")


def classifier_in(folder: Path, frames: int = 1, **changes: Any) -> str:
    torch.manual_seed(0)
    encoder = EncoderConfig(**ENCODER, frames=frames)
    model = EventClassifier(EventConfig(encoder, CLASSES, **changes))
    head = model.mlp_head[1]
    with torch.no_grad():  # logits of mean 0 and std 1 over inputs of many kinds
        fbanks = torch.randn(16, 1, 1) + torch.randn(16, 64, 128) * torch.rand(16, 1, 1)
        images = torch.randn(16, frames, 3, 1, 1) + torch.randn(16, frames, 3, 32, 32)
        logits = model(fbanks, images)
        head.weight.div_(logits.std(0)[:, None])
        head.bias.copy_(-logits.mean(0) / logits.std(0))
    model.save_pretrained(folder)
    record = {"fbank_mean": -7.0, "fbank_std": 4.0, "padding": "silence"}
    (folder / "preprocessing.json").write_text(json.dumps(record))
    return str(folder)


def predict(model: str, out: Path, *words: object) -> int:
    return main([*map(str, words), "--model", model, "--out", str(out), "--device", "cpu"])


def record_of(folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / "events.json").read_text())
    return record


@pytest.mark.parametrize(("frames", "mode"), [(1, None), (10, None), (None, "missing_video")])
def test_windows_side_by_side_are_the_clips_of_an_evaluation(
    classifier: str, video: Maker, tmp_path: Path, frames: int | None, mode: Any
) -> None:
    path = video(seconds=2.56, audio="pcm_s16le", name="a.mkv", size=(48, 32), fps=25)
    out = tmp_path / "shards"
    assert make_shards(
        str(path), out, profile="events", clip_seconds=SECONDS, min_seconds=SECONDS,
        shorter_side=32,
    ) == 0  # fmt: skip
    task = load_task(classifier).eval()
    view = event_view(task.model.config, mode or "multimodal", "silence", frames=frames)
    stream = EvalStream(Manifest.load(str(out)), view, 4)
    expected = torch.cat(
        [task.probs(b, mode or "multimodal").mean(dim=1) for b in Loader(stream, 0)]
    )
    settings = PredictSettings(hop=1.0, frames=frames, mode=mode)
    prediction = EventPredictor.from_pretrained(classifier, "cpu").predict(path, settings)
    assert len(expected) == 4 and expected.std(dim=0).max() > 0.01
    np.testing.assert_allclose(prediction.timeline.bounds, np.arange(5) * SECONDS)
    # JPEGs of the shards differ a little from the frames.
    np.testing.assert_allclose(prediction.timeline.probs, expected.numpy(), atol=0.02)


@pytest.mark.parametrize(("hop", "frames"), [(0.3, 10), (0.3, 3), (1.0, 12)])
def test_overlapping_windows_have_the_frames_and_fbanks_of_windows_alone(
    video: Maker, hop: float, frames: int
) -> None:
    info = probe(str(video(seconds=2.0, size=(48, 32), fps=12.5, audio="pcm_s16le", name="a.mkv")))
    plan = WindowPlan.of(32_000, 64, hop)
    with EventWindows(info, plan, frames, (32, 32), audio=True) as windows:
        inputs = list(windows)
    assert len(inputs) == len(plan.starts) > 3
    with contextlib.closing(AudioReader(info)) as reader:
        waveform, _ = reader.read(0, 2)
    for start, (rows, images, motion) in zip(plan.starts, inputs, strict=True):
        indices, _ = frame_indices(info, plan, start, frames)
        assert motion is None
        wanted = np.unique(indices)
        with contextlib.closing(open_decoder(info, cover(info, (32, 32)), wanted)) as decoder:
            alone = decoder.read(wanted.tolist())
        assert rows is not None and images is not None
        np.testing.assert_array_equal(images, np.stack([alone[int(i)] for i in indices]))
        part = waveform[start * 160 : (start + 64) * 160]
        expected = fbank(torch.from_numpy(to_float(to_int16(part)))).numpy()
        np.testing.assert_allclose(rows, expected, atol=0.02)


def test_files_console_and_resuming(
    classifier: str, video: Maker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "cavmae")
    folder = tmp_path / "in"
    video("in/a.mp4", seconds=1.6, size=(48, 32))
    video("in/b.mp4", seconds=1.0, size=(48, 32))
    (folder / "broken.mp4").write_text("no video")
    out = tmp_path / "out"
    assert predict(classifier, out, folder, "--top", "2", "--threshold", "0.3") == 1
    assert sorted(p.name for p in out.iterdir()) == ["a", "b"]
    assert "broken.mp4: it does not decode" in caplog.text
    assert "2 of 3 videos predicted, 0 there already." in caplog.text
    record = record_of(out / "a")
    assert record["seconds"] == pytest.approx(1.6, abs=0.05)
    assert record["conditions"] == {
        "mode": "multimodal", "frames": "1, the middle", "weights": "not averaged"
    }  # fmt: skip
    assert (record["window"], record["hop"], record["classes"]) == (0.64, 0.32, 3)
    assert [len(part["labels"]) for part in record["timeline"]] == [2] * len(record["timeline"])
    table = np.load(out / "a" / record["table"])
    assert list(table["classes"]) == list(CLASSES)
    assert table["probs"].shape == (len(record["timeline"]), 3)
    for row, part in zip(table["probs"], record["timeline"], strict=True):
        best = np.argsort(-row)[:2]
        assert [label["name"] for label in part["labels"]] == [CLASSES[k] for k in best]
        assert [label["prob"] for label in part["labels"]] == pytest.approx(row[best], abs=1e-4)
    top = record["labels"][0]
    assert top["max_prob"] == pytest.approx(table["probs"].max(), abs=1e-4)
    present = table["probs"][:, CLASSES.index(top["name"])] >= 0.3
    length = sum(b - a for a, b in top["spans"])
    assert length == pytest.approx((table["end"] - table["start"])[present].sum())
    assert f"a.mp4: {top['name']} {top['max_prob']:.2f} (" in caplog.text
    # The same again; other settings; a damaged table; a file of another content.
    before = (out / "a" / "events.json").stat().st_mtime_ns
    words = [folder / "a.mp4", folder / "b.mp4", "--top", "2", "--threshold", "0.3"]
    assert predict(classifier, out, *words) == 0
    assert "0 of 2 videos predicted, 2 there already." in caplog.text
    assert (out / "a" / "events.json").stat().st_mtime_ns == before
    (out / "b" / "probs.npz").write_bytes(b"cut")
    caplog.clear()
    assert predict(classifier, out, *words) == 0
    assert "1 of 2 videos predicted, 1 there already." in caplog.text
    np.load(out / "b" / "probs.npz")
    assert predict(classifier, out, *words[:1], "--top", "1") == 0
    assert "is not of this recording, model and settings, or not whole: made again" in caplog.text
    assert len(record_of(out / "a")["timeline"][0]["labels"]) == 1
    assert sorted(p.name for p in out.iterdir()) == ["a", "b"]


def test_recordings_with_one_modality(
    classifier: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pictures = Track("ffv1", video_frames(0, 40))
    sound = Track("pcm_s16le", audio_frames(sweep(0.0, 1.6)))
    whole = write(tmp_path / "whole.mkv", pictures, sound)
    write(tmp_path / "mute.mkv", pictures)
    write(tmp_path / "blind.wav", sound)
    predictor = EventPredictor.from_pretrained(classifier, "cpu")
    for name, mode, word in (
        ("mute.mkv", "missing_audio", "no audio"), ("blind.wav", "missing_video", "no video"),
    ):  # fmt: skip
        alone = predictor.predict(tmp_path / name)
        same = predictor.predict(whole, PredictSettings(mode=mode))  # type: ignore[arg-type]
        assert alone.conditions.mode == same.conditions.mode == mode
        np.testing.assert_allclose(alone.timeline.probs, same.timeline.probs, atol=1e-4)
        assert any(word in remark for remark in alone.remarks) and word in caplog.text
        assert not same.remarks
    for name, other, word in (
        ("mute.mkv", "missing_video", "no audio"), ("blind.wav", "missing_audio", "no video"),
    ):  # fmt: skip
        with pytest.raises(CavmaeError, match=f"{name}: it has {word}, which this mode needs"):
            predictor.predict(tmp_path / name, PredictSettings(mode=other))  # type: ignore[arg-type]


def test_short_and_silent_recordings(classifier: str, video: Maker, tmp_path: Path) -> None:
    predictor = EventPredictor.from_pretrained(classifier, "cpu")
    short = predictor.predict(video("short.mp4", seconds=0.3, size=(48, 32)))
    assert len(short.timeline.probs) == 1
    assert any("less than a window of 0.64 s" in remark for remark in short.remarks)
    for gain, remarks in ((1, ()), (0, ("its audio is digital silence",))):
        sound = Track("pcm_s16le", audio_frames(gain * sweep(0.0, 1.0)))
        path = write(tmp_path / f"{gain}.mkv", Track("ffv1", video_frames(0, 25)), sound)
        assert tuple(predictor.predict(path).remarks) == remarks


def test_options_that_the_model_does_not_take(
    classifier: str, checkpoint: str, video: Maker, tmp_path: Path
) -> None:
    path, out = video(seconds=0.7, size=(48, 32)), tmp_path / "out"
    for words, message in (
        (["--classes", "[bell,cat]"], "'cat' is no class of the model; they are bell, dog, rain"),
        (["--window", "0.7"], "windows of 0.1 to 0.64 s"),
        (["--hop", "0"], "--hop 0.0 is not from"),
        (["--mode", "missing_video", "--frames", "3"], "takes no frames"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=message):
            predict(classifier, out, path, *words)
    with pytest.raises(CavmaeError, match="speaker"):
        predict(checkpoint, out, path)
    assert not out.exists()
    assert predict(classifier, out, path, "--classes", "[rain]") == 0
    assert [label["name"] for label in record_of(out / "video")["labels"]] == ["rain"]
    # `cavmae evaluate` writes a file of this name, too.
    (out / "video" / "events.json").write_text('{"figures": {}}')
    assert predict(classifier, out, path) == 1
    words = [str(path), "--model", classifier, "--out", str(path)]
    assert run(main, words) == 2  # no folder


def test_a_model_of_several_frames_and_single_labels(video: Maker, tmp_path: Path) -> None:
    model = classifier_in(tmp_path / "m", 2, multi_label=False)
    prediction = EventPredictor.from_pretrained(model, "cpu").predict(
        video(seconds=1.6, size=(48, 32))
    )
    assert prediction.conditions.frames == "2 in one pass, per-frame"
    np.testing.assert_allclose(prediction.timeline.probs.sum(axis=1), 1, atol=1e-5)


def test_probabilities_of_bins_are_means_of_the_windows_over_them() -> None:
    plan = WindowPlan.of(num_samples=160 * 250, length=100, hop=0.5)
    assert plan.starts == [0, 50, 100, 150]
    np.testing.assert_allclose(plan.bounds, [0, 0.5, 1, 1.5, 2, 2.5])
    probs = np.array([[0.0], [1.0], [0.0], [0.0]], dtype=np.float32)
    np.testing.assert_allclose(plan.smoothed(probs)[:, 0], [0, 0.5, 0.5, 0, 0], atol=1e-6)
    uneven = WindowPlan.of(num_samples=160 * 130, length=100, hop=0.5)
    assert uneven.starts == [0, 30] and uneven.bounds[-1] == pytest.approx(1.3)
    constant = np.full((2, 3), 0.25, dtype=np.float32)
    np.testing.assert_allclose(uneven.smoothed(constant), 0.25, atol=1e-6)


def test_labels_have_the_times_at_which_they_are_present() -> None:
    probs = np.array([[0.9, 0.1], [0.2, 0.6], [0.8, 0.1]], dtype=np.float32)
    timeline = EventTimeline(("a", "b"), np.array([0.0, 1.0, 2.0, 2.5]), probs)
    first, second = timeline.labels(top=1, listed=(), threshold=0.5)
    assert first["spans"] == [[0, 1], [2, 2.5]] and first["max_prob"] == 0.9
    assert first["mean_prob"] == pytest.approx((0.9 + 0.2 + 0.4) / 2.5)
    assert second["name"] == "b" and second["spans"] == [[1, 2]]
    assert [part["labels"][0]["name"] for part in timeline.records(1, ())] == ["a", "b", "a"]
    assert timeline.labels(1, ("b",), 0.7)[0]["spans"] == []


@pytest.mark.long
def test_memory_does_not_grow_with_the_recording(classifier: str, tmp_path: Path) -> None:
    """Of a minute and of a quarter of an hour, without video: quick to make and to read."""
    program = (
        "import sys\n"
        "from cavmae.tools.benchmarks.table import peak_mb\n"
        "from cavmae.tools.predict import main\n"
        "for name in ('minute', 'quarter'):\n"
        "    assert main([f'{name}.flac', *sys.argv[1:]]) == 0\n"
        "    print(peak_mb())"
    )
    rng = np.random.default_rng(0)
    for name, seconds in (("minute", 60), ("quarter", 900)):
        wave = rng.uniform(-0.1, 0.1, 8000 * seconds).astype(np.float32)
        soundfile.write(tmp_path / f"{name}.flac", wave, 8000)
    words = ["--model", classifier, "--out", "out", "--device", "cpu", "--hop", "1"]
    done = subprocess.run(
        [sys.executable, "-c", program, *words], cwd=tmp_path, stdout=subprocess.PIPE, check=True
    )
    minute, quarter = map(float, done.stdout.split())
    assert len(record_of(tmp_path / "out" / "quarter")["timeline"]) == 1407
    assert quarter - minute < 40  # MB; the samples alone take 58, what an hour adds is 37


def test_other_names_of_classes_are_another_model(
    video: Maker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = video(seconds=0.7, size=(48, 32))
    model = classifier_in(tmp_path / "000000001")
    assert predict(model, tmp_path / "out", path) == 0
    config = tmp_path / "000000001" / "config.json"
    config.write_text(config.read_text().replace(f'"{CLASSES[0]}"', '"renamed"'))
    assert predict(model, tmp_path / "out", path) == 0
    assert "or not whole: made again" in caplog.text
    names = [label["name"] for label in record_of(tmp_path / "out" / "video")["labels"]]
    assert "renamed" in names and CLASSES[0] not in names
    with pytest.raises(UsageError, match="--classes: name each class once"):
        predict(model, tmp_path / "out", path, "--classes", "[renamed,renamed]")


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [("a.aac", "aac", {}), ("a.mp3", "libmp3lame", {}),
     ("b.mp3", "libmp3lame", {"flags": "+qscale", "global_quality": "1062"}),  # varying bit rate
     ("a.ogg", "", {})],
)  # fmt: skip
def test_audio_files_without_a_stored_duration_are_whole(
    tmp_path: Path, name: str, codec: str, options: dict[str, str]
) -> None:
    """FFmpeg estimates it from the bit rate of the first packets, which here are silent."""
    wave = np.random.default_rng(0).uniform(-0.5, 0.5, 20 * 16000).astype(np.float32)
    wave[: 8 * 16000] = 0
    path = tmp_path / name
    if codec:
        muxer = {"write_xing": "0"} if name == "a.mp3" else {}
        write(path, Track(codec, audio_frames(wave, 16000), options), options=muxer)
    else:
        soundfile.write(path, wave, 16000)  # Vorbis
    info = probe(str(path), partial=True)
    assert info.unused == ()
    assert info.audio_span[1] == pytest.approx(20, abs=0.2)
