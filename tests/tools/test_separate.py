"""`cavmae separate`: any recording in, voices and masks out."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from cavmae.common.errors import CavmaeError, UsageError
from cavmae.datasets.media import Probe, probe
from cavmae.datasets.media.geometry import Geometry, cut_from
from cavmae.datasets.media.playback import Playback
from cavmae.datasets.media.writing import VideoWriter
from cavmae.finetune.inference.audio import spans_of, speech_spans, write_wav
from cavmae.finetune.inference.first_pass import FirstPass, Sighting
from cavmae.finetune.inference.lip_sync import LipSync
from cavmae.finetune.inference.records import activity_prob
from cavmae.finetune.inference.result_files import SeparatedFiles
from cavmae.finetune.inference.separator import Separator
from cavmae.finetune.inference.settings import SeparateSettings, Thresholds
from cavmae.finetune.inference.sources import working_size
from cavmae.finetune.inference.target import Target
from cavmae.tools.separate import main
from tests.finetune.inference.predictors import view_of

Maker = Callable[..., Path]
QUICK = SeparateSettings(second_look=False, height=64)
STEPS = (0.5, 1.5)
THRESHOLDS = Thresholds()


def input_geometry(info: Probe) -> Geometry:
    """Geometry of frames without a second look."""
    size = working_size(info.display, (32, 48), None)
    return cut_from(info, size, size)


def wave(path: Path) -> tuple[np.ndarray, int]:
    samples, rate = soundfile.read(str(path), dtype="int16")
    return samples.astype(np.int64), rate


def pictures(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]


def test_everything_that_is_written(separator: Separator, video: Maker, tmp_path: Path) -> None:
    path = video(seconds=3.12, events=STEPS, audio="pcm_s16le", name="a.mkv", size=(144, 96))
    settings = SeparateSettings(second_look=False)
    result = separator.separate(str(path), tmp_path / "out", settings)
    record = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result.record == record
    assert record["seconds"] == pytest.approx(3.12)
    assert len(result.people) >= 2
    names = {p.name for p in (tmp_path / "out").iterdir()}
    people = {f"person-{p.number}.{e}" for p in result.people for e in ("wav", "mp4")}
    assert names == {"result.json", "residual.wav", "overlay.mp4", *people}
    parts = [wave(p.voice) for p in result.people] + [wave(result.residual)]
    assert {rate for _, rate in parts} == {16_000}
    assert {len(samples) for samples, _ in parts} == {round(3.12 * 16_000)}
    assert max(np.abs(samples).max() for samples, _ in parts) <= 0.99 * 32768 + 1
    info = probe(str(path))
    with Playback(info, input_geometry(info)) as playback:
        mixture = playback.read_audio(0, playback.frames)[: round(3.12 * 16_000)]
    total = sum(samples for samples, _ in parts)
    difference = total - mixture * record["gain"] * 32768
    assert np.abs(difference).max() <= len(parts)  # each is rounded once
    for person in record["people"]:
        assert person["state"] in ("speaking", "silent")
        assert all(0 <= a < b <= 3.12 for a, b in person["speech"] + person["visible"])
        for box in person["boxes"]:
            left, top, right, bottom = box["box"]
            assert 0 <= left < right <= 1
            assert 0 <= top < bottom <= 1
    overlay = pictures(tmp_path / "out" / "overlay.mp4")
    assert len(overlay) == 78
    assert overlay[0].shape == (96, 144, 3)
    with av.open(str(tmp_path / "out" / "overlay.mp4")) as container:
        assert container.streams.audio[0].duration is not None
    for person in result.people:
        assert person.mask is not None
        masks = pictures(person.mask)
        assert len(masks) == 78
        assert {int(v) for v in np.unique(masks[40] // 128)} == {0, 1}


@pytest.mark.parametrize("offset", ["-0.13", "0.1", "auto"])
def test_a_file_out_of_step_lacks_nothing(
    offset: str, checkpoint: str, video: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an offset that is given, and in the second pass over one that is measured."""
    path = video(seconds=2.2, events=STEPS, audio="pcm_s16le", name="a.mkv", size=(144, 96))
    monkeypatch.setattr(LipSync, "lead", lambda _: -1600)
    words = ["--model", checkpoint, "--out", str(tmp_path / "out"), "--av-offset", offset]
    assert main([str(path), *words, "--second-look", "false", "--height", "64"]) == 0
    result = SeparatedFiles.load(tmp_path / "out" / "a")
    assert result.record["av_offset"] == (-0.1 if offset == "auto" else float(offset))
    samples = round(2.2 * 16_000)
    parts = [wave(p.voice)[0] for p in result.people] + [wave(result.residual)[0]]
    info = probe(str(path))
    with Playback(info, input_geometry(info)) as playback:
        mixture = playback.read_audio(0, playback.frames)[:samples]
    difference = sum(parts) - mixture * result.record["gain"] * 32768
    assert np.abs(difference).max() <= len(parts)
    assert len(pictures(tmp_path / "out" / "a" / "overlay.mp4")) == 55
    for person in result.people:
        assert person.mask is not None
        assert len(pictures(person.mask)) == 55
        assert all(0 <= box["time"] < 2.2 for box in person.record["boxes"])


def test_mask_videos_show_the_masks(separator: Separator, video: Maker, tmp_path: Path) -> None:
    """Masks of a clip of one window, at its key frames, resized to the frame."""
    path = video(seconds=0.64, size=(96, 64))
    info = probe(str(path))
    with Playback(info, input_geometry(info)) as playback:
        frames, audio = playback.read_frames(0, 16), playback.read_audio(0, 16)
        predictor = separator._predictor
        detected = predictor.predict(view_of(predictor, frames), predictor.prepare(audio))
    result = separator.separate(str(path), tmp_path / "out", QUICK)
    assert len(detected) == len(result.people)
    for person, written in zip(detected, result.people, strict=True):
        assert written.mask is not None
        frames = pictures(written.mask)
        for key, mask in zip(separator._predictor.keys, person.masks, strict=True):
            large = torch.nn.functional.interpolate(
                torch.from_numpy(mask)[None, None].float(), (64, 96), mode="bilinear"
            )[0, 0].numpy()
            sure = np.abs(large / 255 - 0.5) > 0.05  # and not where coding blurs the edge
            assert ((frames[key][..., 0] > 127) == (large > 127))[sure].mean() > 0.95


def test_a_clip_as_long_as_a_window_is_one_forward_pass(
    separator: Separator, video: Maker, tmp_path: Path
) -> None:
    predictor = separator._predictor
    path = video(seconds=0.64, size=(96, 64), audio="pcm_s16le", name="a.mkv")
    info = probe(str(path))
    with Playback(info, input_geometry(info)) as playback:
        mixture = predictor.prepare(playback.read_audio(0, 16))
        people = predictor.predict(view_of(predictor, playback.read_frames(0, 16)), mixture)
    result = separator.separate(str(path), tmp_path / "out", QUICK)
    gain = result.record["gain"]
    assert len(people) == len(result.people)
    samples = round(0.64 * 16_000)
    expected = [np.rint(p.voice[:samples] * gain * 32768) for p in people]
    for person in result.people:
        differences = [np.abs(wave(person.voice)[0] - e).max() for e in expected]
        assert min(differences) <= 1


def test_the_command_gives_what_the_interface_gives(
    separator: Separator, checkpoint: str, video: Maker, tmp_path: Path
) -> None:
    path = video(seconds=1.5)
    result = separator.separate(str(path), tmp_path / "api", QUICK)
    words = [
        sys.executable, "-m", "cavmae.tools.separate", str(path), "--model", checkpoint,
        "--out", str(tmp_path / "command"), "--second-look", "false", "--height", "64",
        "--device", "cpu",
    ]  # fmt: skip
    # The same number of threads: sums are rounded as they are split among them.
    alone = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, env=alone)
    assert done.returncode == 0, done.stderr
    assert "people 1 (" in done.stderr
    other = SeparatedFiles.load(tmp_path / "command" / "video")
    for person, same in zip(result.people, other.people, strict=True):
        assert person.voice.read_bytes() == same.voice.read_bytes()
    assert result.residual.read_bytes() == other.residual.read_bytes()
    assert result.record == other.record


@pytest.mark.parametrize(
    ("name", "changes", "size"),
    [
        ("wide.mp4", {"size": (192, 64)}, (64, 192)),
        ("odd.mkv", {"size": (98, 66), "fps": 12.5}, (64, 96)),
        ("late.mkv", {"video_start": 0.32}, (64, 96)),
        ("96k.mkv", {"audio": "flac", "rate": 96000, "channels": 2}, (64, 96)),
        ("eight.mkv", {"audio": "pcm_s16le", "rate": 48000, "channels": 8}, (64, 96)),
        ("one.mp4", {"seconds": 0.04, "audio_seconds": 0.04}, (64, 96)),
        ("turned.mp4", {"rotation": 90}, (96, 64)),
    ],
)
def test_any_file(
    separator: Separator, video: Maker, tmp_path: Path, name: str, changes: dict[str, Any],
    size: tuple[int, int],
) -> None:  # fmt: skip
    path = video(name, **changes)
    settings = SeparateSettings(second_look=False, height=max(size), rate="input")
    result = separator.separate(str(path), tmp_path / "out", settings)
    assert result.overlay is not None
    assert pictures(result.overlay)[0].shape[:2] == pytest.approx(size, abs=2)
    samples, rate = wave(result.residual)
    assert rate == changes.get("rate", 16_000)
    assert len(samples) == pytest.approx(result.record["seconds"] * rate, abs=2)


def test_silence_and_no_people(checkpoint: str, tmp_path: Path) -> None:
    path = tmp_path / "silent.mp4"
    writer = VideoWriter(path, (96, 64), 25, 23.0, np.zeros(16_000, dtype=np.int16))
    for number in range(25):
        writer.write(number, np.full((64, 96, 3), 90, dtype=np.uint8))
    writer.close()
    separator = Separator.from_pretrained(checkpoint, "cpu")
    with torch.no_grad():  # every slot is empty
        states = separator._predictor.speaker.model.state_head[-1]
        states.bias.copy_(torch.tensor([-9.0, -9.0, -9.0, 9.0]))
    result = separator.separate(str(path), tmp_path / "out", QUICK)
    assert result.people == ()
    assert not wave(result.residual)[0].any()
    assert result.record["gain"] == 1
    assert len(pictures(result.overlay)) == 25  # type: ignore[arg-type]


def test_results_without_a_folder_named(
    checkpoint: str, video: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = video(seconds=0.64, size=(96, 64), name="talk.mp4")
    monkeypatch.chdir(tmp_path)
    words = ["--overlay", "false", "--masks", "false", "--second-look", "false"]
    assert main([str(path), "--model", checkpoint, "--device", "cpu", *words]) == 0
    assert (tmp_path / "separated" / "talk" / "result.json").exists()


# --- a target ---


def test_a_target_alone(separator: Separator, video: Maker, tmp_path: Path) -> None:
    path = video(seconds=2.0, size=(96, 64))
    reference = tmp_path / os.fsdecode(b"voice\xe9.wav")
    sound = np.random.default_rng(0).normal(size=48_000) * 0.1
    soundfile.write(os.fsencode(reference), sound, 48_000)
    mask = np.zeros((64, 96), dtype=np.uint8)
    mask[20:, 50:] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    for number, target in enumerate(
        (
            Target(box=(48, 16, 96, 64), time=1.0), Target(point=(0.8, 0.5), time=0.2),
            Target(mask=str(tmp_path / "mask.png")), Target(voice=str(reference)),
        )
    ):  # fmt: skip
        result = separator.separate(str(path), tmp_path / f"{number}", QUICK, target)
        assert len(result.people) == 1
        assert result.record["target"]["kind"] == target.kind
        total = wave(result.people[0].voice)[0] + wave(result.residual)[0]
        assert len(total) == 32_000


def test_a_target_where_nobody_is_gets_a_remark(
    separator: Separator, video: Maker, tmp_path: Path
) -> None:
    path = video(seconds=2.0, size=(96, 64))
    everybody = separator.separate(str(path), tmp_path / "all", QUICK)
    assert not everybody.record["remarks"]
    for name, point, expected in (("on", (0.2, 0.5), False), ("off", (0.0, 0.0), True)):
        result = separator.separate(str(path), tmp_path / name, QUICK, Target(point=point))
        has_remark = any("no mask is at the point at 0 s" in r for r in result.record["remarks"])
        assert has_remark == expected, (name, result.record["people"][0]["boxes"])


@pytest.mark.parametrize("target", [Target(time=1.0), Target(voice="a.wav", time=1.0)])
def test_a_time_without_a_place_is_refused(target: Target) -> None:
    with pytest.raises(UsageError, match=r"--target\.time 1 is of --target\.box"):
        target.check()


@pytest.mark.parametrize(
    "words",
    [
        ["--target.box", "48,16,96,64", "--target.time", "0.4"],
        ["--target.box=[48, 16, 96, 64]"],
        ["--target.point=0.8,0.5"],
    ],
)
def test_a_target_on_the_command_line(
    checkpoint: str, video: Maker, tmp_path: Path, words: list[str]
) -> None:
    path = video(seconds=1.0, size=(96, 64))
    out = tmp_path / "out"
    known = [str(path), "--model", checkpoint, "--out", str(out), "--overlay", "false",
             "--masks", "false", "--second-look", "false"]  # fmt: skip
    assert main([*known, *words]) == 0
    record = SeparatedFiles.load(out / "video").record
    assert len(record["people"]) == 1
    if record["target"]["kind"] == "box":
        assert record["target"]["box"] == [0.5, 0.25, 1.0, 1.0]
    else:
        assert record["target"]["box"] == [0.8, 0.5, 0.8, 0.5]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (Target(box=(10, 10, 200, 50)), "does not lie in the frame of 96x64"),
        (Target(box=(50, 10, 20, 50)), "does not lie in the frame"),
        (Target(point=(-3, 5)), "does not lie in the frame"),
        (Target(point=(3, 5), time=9.0), "outside the recording of 2 s"),
        (Target(point=(3, 5), voice="x.wav"), "in one way, not by point and voice"),
        (Target(voice="x.wav"), "there is no such file"),
        (Target(mask="x.png"), "not a readable image"),
    ],
)
def test_a_target_that_cannot_be(
    separator: Separator, video: Maker, tmp_path: Path, target: Target, message: str
) -> None:
    with pytest.raises(CavmaeError, match=message):
        separator.separate(str(video()), tmp_path / "out", QUICK, target)
    assert not (tmp_path / "out").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["video.mp4"]  # nothing is left behind


def test_masks_of_another_size_and_black_ones(
    separator: Separator, video: Maker, tmp_path: Path
) -> None:
    path = str(video())
    for shape, value, message in (
        ((10, 10), 255, "has 10x10 pixels, the frame 96x64"), ((64, 96), 0, "is black"),
    ):  # fmt: skip
        Image.fromarray(np.full(shape, value, np.uint8)).save(tmp_path / "mask.png")
        with pytest.raises(UsageError, match=message):
            separator.separate(path, tmp_path / "o", QUICK, Target(mask=str(tmp_path / "mask.png")))


# --- voices ---


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100, 48_000])
def test_long_voices_are_written_block_by_block_without_seams(tmp_path: Path, rate: int) -> None:
    time = np.arange(int(21.3 * 16_000)) / 16_000
    tone = (0.5 * np.sin(2 * np.pi * 440 * time)).astype(np.float32)
    write_wav(tmp_path / "a.wav", tone, 0.5, rate)
    samples, written_rate = soundfile.read(str(tmp_path / "a.wav"))
    assert written_rate == rate
    assert len(samples) == round(21.3 * rate)
    expected = 0.25 * np.sin(2 * np.pi * 440 * np.arange(len(samples)) / rate)
    inside = slice(rate // 10, -rate // 10)
    assert np.abs(samples - expected)[inside].max() < 2e-3


def test_speech_is_where_it_is_loud_and_likely() -> None:
    assert spans_of(np.zeros(10, dtype=bool), THRESHOLDS) == []
    active = np.zeros(100, dtype=bool)
    active[10:20] = active[25:50] = active[80:82] = True
    assert spans_of(active, THRESHOLDS) == [(0.4, 2.0)]  # a short gap is closed, a blip left out
    voice = np.full(100, -70.0, dtype=np.float32)
    voice[30:60] = -20
    whole = np.full(100, -20.0, dtype=np.float32)
    likely = np.ones(100, dtype=np.float32)
    assert speech_spans(voice, whole, likely, THRESHOLDS) == [(1.2, 2.4)]
    assert speech_spans(voice, whole, likely * 0.2, THRESHOLDS) == []
    assert speech_spans(voice - 45, whole, likely, THRESHOLDS) == []
    digital = np.full(100, -120.0, dtype=np.float32)
    assert speech_spans(digital, digital, likely, THRESHOLDS) == []  # however sure the model is
    rare = np.full(1000, -45.0, dtype=np.float32)  # leakage of a person who talks all the time
    rare[500:520] = -10
    likely = np.zeros(1000, dtype=np.float32)
    likely[490:530] = 1
    whole = np.full(1000, -10.0, dtype=np.float32)
    assert speech_spans(rare, whole, likely, THRESHOLDS) == [(20.0, 20.8)]


def test_activity_is_the_weighted_mean_of_windows(tmp_path: Path) -> None:
    """Where a single window covers a frame, its value counts alone."""
    recording = FirstPass(
        tmp_path, 32, 32 * 640, np.ones(32, bool), [0, 8, 16], 16, np.array([2, 6, 10, 14]),
        [()] * 3, {}, 0,
    )  # fmt: skip
    sightings = []
    with (tmp_path / "masks.u8").open("wb") as file:
        for window, prob in ((0, 0.2), (1, 0.8)):
            sightings.append(
                Sighting(window, 0.9, (0, 0, 1, 1), (1, 2, 3), file.tell(), None, False, 0.0, None)
            )
            file.write(bytes([window, 2, 3, 4, 5, 6]))
            file.write(np.full(16, prob, np.float32).tobytes())
    assert recording.masks(sightings[1]).tolist() == [[[1, 2, 3], [4, 5, 6]]]
    mean = activity_prob(recording, sightings)
    np.testing.assert_allclose(mean[:8], 0.2, atol=1e-5)
    assert (np.diff(mean[8:16]) > 0).all()
    assert mean[11:13].mean() == pytest.approx(0.5, abs=0.01)
    np.testing.assert_allclose(mean[16:24], 0.8, atol=1e-5)
    assert not mean[24:].any()
