"""`cavmae separate` of recordings that decode in part or not at all, and by damaged models."""

import dataclasses
import json
import random
import re
import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from cavmae.common.errors import CavmaeError
from cavmae.datasets.media import probe
from cavmae.finetune.inference.predictor import WindowPredictor
from cavmae.finetune.inference.result_files import SeparatedFiles
from cavmae.finetune.speaker.factory import load_speaker
from cavmae.tools.separate import main
from tests.datasets.recordings import Track, audio_frames, sweep, video_frames, write

Maker = Callable[..., Path]


def words(checkpoint: str, out: Path, *more: str) -> list[str]:
    """Options of the fastest run."""
    return ["--model", checkpoint, "--out", str(out), "--second-look", "false",
            "--overlay", "false", "--masks", "false", "--device", "cpu", *more]  # fmt: skip


def spoil(path: Path, kind: str, share: float, zeros: bool = True) -> int:
    """Overwrites packets of an MP4 file, evenly spread; its index stays whole.

    Returns:
        number of packets.
    """
    with av.open(str(path)) as container:
        stream = getattr(container.streams, kind)[0]
        places = [(p.pos, p.size) for p in container.demux(stream) if p.size]
    data, rng = bytearray(path.read_bytes()), random.Random(0)
    count = round(share * len(places))
    for number in range(count):
        first, size = places[number * len(places) // count]
        data[first : first + size] = bytes(size) if zeros else rng.randbytes(size)
    path.write_bytes(data)
    return count


@pytest.mark.parametrize("zeros", [True, False])
def test_a_recording_none_of_whose_pictures_decode(
    checkpoint: str, video: Maker, tmp_path: Path, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch, zeros: bool,
) -> None:  # fmt: skip
    path = video(seconds=8.0)
    assert spoil(path, "video", 1.0, zeros) == 200
    calls: list[object] = []
    predict = WindowPredictor.predict

    def record_call(self: WindowPredictor, *arguments: Any) -> Any:
        calls.append(arguments)
        return predict(self, *arguments)

    monkeypatch.setattr(WindowPredictor, "predict", record_call)
    out = tmp_path / "out"
    assert main([str(path), *words(checkpoint, out)]) == 1
    # As many as were read before the first window was to be predicted.
    match = re.search(r"video.mp4: it does not decode \(at least (\d+) of its 200", caplog.text)
    assert match is not None and 20 < int(match[1]) < 100
    assert not calls  # it is given up before any work is done
    assert list(out.iterdir()) == []


def test_frames_that_are_lost_are_counted_and_limited(
    checkpoint: str, video: Maker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    intra = (("g", "1"),)  # each frame by itself: as many are lost as are overwritten
    few, many = (video(name, seconds=2.0, codec_options=intra) for name in ("few.mp4", "many.mp4"))
    whole = video("whole.mp4", seconds=1.0)
    assert (spoil(few, "video", 0.08), spoil(many, "video", 0.2)) == (4, 10)
    out = tmp_path / "out"
    caplog.set_level("INFO", "cavmae")
    assert main([str(many), str(few), str(whole), *words(checkpoint, out)]) == 1
    assert {p.name for p in out.iterdir()} == {"few", "whole"}
    assert "of its 50 frames could not be decoded, more than --max-missing 0.1" in caplog.text
    message = "4 of 50 frames could not be decoded"
    assert f"few.mp4: {message}" in caplog.text
    record = SeparatedFiles.load(out / "few").record
    assert record["missing_frames"] == 4
    assert [remark[: len(message)] for remark in record["remarks"]] == [message]
    assert SeparatedFiles.load(out / "whole").record["remarks"] == []
    assert "whole.mp4: 1.0 s, 2 windows" in caplog.text
    assert main([str(many), *words(checkpoint, out, "--max-missing", "0.3")]) == 0
    assert SeparatedFiles.load(out / "many").record["missing_frames"] == 10


def test_sound_that_does_not_decode(
    checkpoint: str, video: Maker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    none, some, few = (video(f"{n}.mp4", seconds=4.0) for n in ("none", "some", "few"))
    spoil(none, "audio", 1.0)
    spoil(some, "audio", 0.3)
    assert spoil(few, "audio", 0.05) == 3
    out = tmp_path / "out"
    assert main([str(none), str(some), str(few), *words(checkpoint, out)]) == 1
    assert [p.name for p in out.iterdir()] == ["few"]
    for name in ("none", "some"):
        assert f"{name}.mp4: it does not decode (at least" in caplog.text
    assert "audio packets could not be decoded, more than --max-missing" in caplog.text
    record = SeparatedFiles.load(out / "few").record
    assert record["missing_audio"] == pytest.approx(0.05, abs=0.01)
    assert record["remarks"][0].startswith("3 of 64 audio packets could not be decoded")


def test_what_of_a_recording_is_not_read_is_named(
    checkpoint: str, video: Maker, tmp_path: Path, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    path = video(seconds=1.0)
    info = dataclasses.replace(probe(str(path)), audio_streams=3)
    monkeypatch.setattr("cavmae.finetune.inference.separator.probe", lambda *_: info)
    assert main([str(path), *words(checkpoint, tmp_path / "out")]) == 0
    assert f"{path}: of 3 audio streams number 1 is read." in caplog.text
    record = json.loads((tmp_path / "out" / "video" / "result.json").read_text())
    assert record["remarks"] == ["of 3 audio streams number 1 is read"]
    assert (record["video_stream"], record["audio_stream"], record["mixdown"]) == (0, 1, "mono")


def test_pictures_that_end_before_the_sound(
    checkpoint: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pictures = Track("libx264", video_frames(0, 25))
    sound = Track("pcm_s16le", audio_frames(sweep(0.0, 2.19)))
    path = write(tmp_path / "a.mkv", pictures, sound)
    assert main([str(path), *words(checkpoint, tmp_path / "out")]) == 0
    record = json.loads((tmp_path / "out" / "a" / "result.json").read_text())
    (remark,) = record["remarks"]
    assert remark.startswith("its last frame, of 0.96 s, stays to its end at 2.18 s")
    assert f"a.mkv: {remark}." in caplog.text
    assert record["people"]
    for person in record["people"]:
        for _, end in (*person["visible"], *person["speech"]):
            assert end <= record["seconds"] + 1e-3


@pytest.mark.parametrize("name", ["state_head", "articulation_head"])
def test_a_model_that_gives_nan(
    checkpoint: str, video: Maker, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """The command fails; it writes neither silence nor an empty result."""
    broken = tmp_path / "model"
    model, _ = load_speaker(checkpoint)
    weights = next(v for k, v in model.named_parameters() if name in k and "weight" in k)
    with torch.no_grad():
        weights.fill_(3e38)  # each a number, their sums are not
    model.save_pretrained(broken)
    shutil.copy(Path(checkpoint) / "preprocessing.json", broken)
    path, out = video(seconds=1.0), tmp_path / "out"
    assert main([str(path), *words(str(broken), out)]) == 1
    assert f"video.mp4: model {broken} gives NaN or Inf" in caplog.text
    assert list(out.iterdir()) == []


def test_statistics_that_are_not_finite(
    checkpoint: str, video: Maker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = tmp_path / "model"
    shutil.copytree(checkpoint, broken)
    (broken / "COMPLETE").unlink(missing_ok=True)
    (broken / "preprocessing.json").write_text('{"fbank_mean": NaN, "fbank_std": 4.0}')
    with pytest.raises(CavmaeError, match=r"preprocessing.json is damaged \(NaN"):
        main([str(video(seconds=1.0)), *words(str(broken), tmp_path / "out")])


def test_sound_that_overflows_is_not_the_models_fault(
    checkpoint: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "loud.mkv"
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25)
        sound = container.add_stream("pcm_f32le", rate=16_000, layout="mono")
        video.width, video.height, video.pix_fmt = 96, 64, "yuv420p"
        for number in range(25):
            picture = av.VideoFrame.from_ndarray(np.full((64, 96, 3), 9 * number, np.uint8))
            picture.pts, picture.time_base = number, Fraction(1, 25)
            container.mux(video.encode(picture))
        container.mux(video.encode(None))
        wave = av.AudioFrame.from_ndarray(np.full((1, 16_000), 1e30, np.float32), "flt", "mono")
        wave.sample_rate, wave.pts, wave.time_base = 16_000, 0, Fraction(1, 16_000)
        container.mux(sound.encode(wave))
        container.mux(sound.encode(None))
    assert main([str(path), *words(checkpoint, tmp_path / "out")]) == 1
    assert "loud.mkv: it does not decode (its audio has samples as large as 1.0e+30)" in caplog.text
