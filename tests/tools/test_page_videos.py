"""Videos of a report page: small ones are the files, of larger ones there is a smaller copy."""

import dataclasses
import io
from pathlib import Path

import av
import pytest

from cavmae.tools.benchmarks.media import VideoSpec, make_video
from cavmae.tools.reporting import page_videos
from cavmae.tools.reporting.fields import FileRefused
from cavmae.tools.reporting.page_videos import page_video

SPEC = VideoSpec(seconds=4.0, size=(640, 480), rate=16000, channels=1)


def contents(video: bytes) -> tuple[tuple[int, int], int, float, float]:
    """Size, number of frames, seconds of video and of audio."""
    with av.open(io.BytesIO(video), "r", format="mp4") as container:
        frames = list(container.decode(video=0))
    with av.open(io.BytesIO(video), "r", format="mp4") as container:
        audio = list(container.decode(audio=0)) if container.streams.audio else []
    audio_seconds = sum(f.samples / f.sample_rate for f in audio)
    last = float(frames[-1].pts * frames[-1].time_base) + 1 / 25
    return (frames[0].width, frames[0].height), len(frames), last, audio_seconds


def test_a_small_video_is_the_file_itself(tmp_path: Path) -> None:
    video = make_video(tmp_path / "a.mp4", dataclasses.replace(SPEC, seconds=1.0)).read_bytes()
    assert page_video(video) == (video, "")


@pytest.mark.parametrize("seconds", [30.0, 2.0])
def test_a_copy_has_the_first_seconds_in_smaller_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    monkeypatch.setattr(page_videos, "SMALL_BYTES", 1000)
    monkeypatch.setattr(page_videos, "PAGE_SECONDS", seconds)
    monkeypatch.setattr(page_videos, "HEIGHT", 120)
    video = make_video(tmp_path / "a.mp4", SPEC).read_bytes()
    copy, note = page_video(video)
    length = min(seconds, 4.0)
    assert note == ("at 160x120" if seconds > 4 else "the first 2 s, at 160x120")
    assert len(copy) < len(video) / 2
    whole, own = contents(video), contents(copy)
    assert own[0] == (160, 120)
    assert abs(own[1] - whole[1] * length / 4) <= 1
    assert own[2] == pytest.approx(length, abs=0.1)
    assert own[3] == pytest.approx(length, abs=0.1)


def test_what_is_no_video(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_videos, "SMALL_BYTES", 10)
    with pytest.raises(FileRefused, match="does not decode as MP4"):
        page_video(b"x" * 1000)
