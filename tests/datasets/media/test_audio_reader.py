"""Audio of real containers and codecs, and its synchrony with the video."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from cavmae.datasets.media import AudioReader, open_decoder, probe
from cavmae.datasets.media.downmix import USUAL, weights_of
from cavmae.datasets.media.geometry import geometry
from cavmae.tools.benchmarks.media import LAYOUTS

Maker = Callable[..., Path]


def click_times(waveform: np.ndarray) -> list[float]:
    """Seconds at which clicks begin."""
    loud = np.flatnonzero(np.abs(waveform) > 0.15) / 16000
    return [loud[0], *loud[1:][np.diff(loud) > 0.1]]


# A white flash and a click at the same time of the video.

STEP_CASES: dict[str, dict[str, object]] = {
    "aac.mp4": {},
    "late_sound.mp4": {"audio_start": 0.5},
    "late_sound.mkv": {"audio_start": 0.5},
    "late_picture.mkv": {"video_start": 0.4},
    "mp2.mpg": {"codec": "mpeg1video", "audio": "mp2", "rate": 44100, "channels": 2},
    "mp2late.mpg": {
        "codec": "mpeg2video", "audio": "mp2", "rate": 44100, "channels": 2, "audio_start": 0.5,
        "codec_options": (("bf", "2"),),
    },
    "pcm.avi": {"codec": "mpeg4", "audio": "pcm_s16le", "rate": 22050},
    "b_frames.avi": {
        "codec": "mpeg4", "audio": "pcm_s16le", "rate": 22050, "codec_options": (("bf", "2"),)
    },
    "opus.webm": {"codec": "libvpx-vp9", "audio": "libopus", "rate": 48000, "channels": 2},
    "ts.ts": {"audio_start": 0.5},
    "96k.mkv": {"audio": "flac", "rate": 96000, "channels": 2},
    "8k.mkv": {"audio": "pcm_s16le", "rate": 8000},
    "eight.mkv": {"audio": "pcm_s16le", "rate": 48000, "channels": 8},
    "30fps.mp4": {"fps": 30.0},
    "b_frames.mp4": {"codec_options": (("bf", "3"),), "rate": 44100, "channels": 6},
}  # fmt: skip


@pytest.mark.parametrize("name", STEP_CASES)
def test_audio_and_video_stay_in_step_to_half_a_frame(video: Maker, name: str) -> None:
    events = (0.8, 1.6, 2.4, 3.2)
    path = video(name, seconds=4.0, audio_seconds=3.4, events=events, **STEP_CASES[name])
    info = probe(str(path))
    shape = geometry(info, 64, "square")
    wanted = list(range(len(info.frame_times)))
    frames = open_decoder(info, shape, np.array(wanted)).read(wanted)
    bright = [info.frame_times[i] for i, frame in frames.items() if frame.mean() > 200]
    waveform, span = AudioReader(info).read(0.0, info.video_span[1])
    clicks = click_times(waveform)
    assert len(bright) == len(events)
    assert len(clicks) == len(events)
    np.testing.assert_allclose(clicks, bright, atol=0.020)
    np.testing.assert_allclose(np.diff(bright), 0.8, atol=0.04)
    assert span is not None


@pytest.mark.parametrize("channels", range(1, 9))
@pytest.mark.parametrize("downmix", ["mean", "first"])
def test_channels(tmp_path: Path, channels: int, downmix: str) -> None:
    path = tmp_path / "x.mkv"
    time = np.arange(16000) / 16000
    tone = np.sin(2 * np.pi * 440 * time) * 0.5
    weights = 1 / np.arange(1, channels + 1)
    samples = (np.outer(tone, weights) * 32767).astype(np.int16)
    with av.open(str(path), "w") as out:
        video = out.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = 32, 32, "yuv420p"
        audio = out.add_stream("pcm_s16le", rate=16000, layout=LAYOUTS[channels])
        for i in range(25):
            frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), "rgb24")
            frame.pts, frame.time_base = i, Fraction(1, 25)
            out.mux(video.encode(frame))
        out.mux(video.encode(None))
        chunk = av.AudioFrame.from_ndarray(samples.reshape(1, -1), "s16", LAYOUTS[channels])
        chunk.sample_rate, chunk.pts = 16000, 0
        out.mux(audio.encode(chunk))
        out.mux(audio.encode(None))
    waveform, _ = AudioReader(probe(str(path)), downmix).read(0.0, 1.0)
    usual = av.AudioLayout(USUAL[channels])  # PCM in Matroska does not name its channels
    names = tuple(channel.name for channel in usual.channels)
    expected = tone * (weights @ weights_of(names) if downmix == "mean" else 1.0)
    np.testing.assert_allclose(waveform, expected, atol=1e-3)


def test_segments_of_audio_join_without_a_seam(video: Maker) -> None:
    info = probe(str(video(rate=44100, seconds=4.0, events=(0.5, 1.5, 2.5))))
    whole, _ = AudioReader(info).read(0.0, 4.0)
    reader = AudioReader(info)
    pieces = [reader.read(t / 2, t / 2 + 0.5)[0] for t in range(8)]
    joined = np.concatenate(pieces)
    assert len(joined) == len(whole)
    np.testing.assert_allclose(joined, whole, atol=2e-4)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("x.mp4", {}),
        ("x.mkv", {"audio": "libopus", "rate": 48000}),
        ("x.avi", {"codec": "mpeg4", "audio": "libmp3lame", "rate": 44100}),
        ("x.mpg", {"codec": "mpeg2video", "audio": "mp2", "rate": 44100}),
        ("x.ts", {"rate": 44100}),
        ("x.mov", {"audio": "pcm_s16le"}),
    ],
)
def test_audio_from_late_in_a_file_is_the_same(
    video: Maker, name: str, changes: dict[str, object]
) -> None:
    events = tuple(np.arange(0.7, 40, 1.3))
    info = probe(str(video(name, seconds=40.0, fps=5.0, events=events, **changes)))
    whole, _ = AudioReader(info).read(0.0, 39.0)
    part, span = AudioReader(info, start=30.0).read(30.0, 35.0)
    assert span == (0.0, 5.0)
    expected = whole[30 * 16000 : 35 * 16000]
    # Matroska's time stamps are whole milliseconds, and some codecs fill in noise at random.
    np.testing.assert_allclose(click_times(part), click_times(expected), atol=1.1e-3)
    lags = range(-18, 19)
    correlations = [np.corrcoef(np.roll(part, lag)[20:-20], expected[20:-20])[0, 1] for lag in lags]
    assert max(correlations) > 0.98


def test_audio_does_not_pile_up(video: Maker) -> None:
    info = probe(str(video(seconds=40.0, fps=5.0)))
    reader = AudioReader(info)
    reader.read(39.0, 39.5)
    assert sum(chunk.samples.shape[1] for chunk in reader._chunks) < 2 * 16000


def test_audio_that_starts_late_and_ends_early(video: Maker) -> None:
    info = probe(str(video("x.mkv", audio="flac", audio_start=0.5, audio_seconds=1.0)))
    waveform, span = AudioReader(info).read(0.0, 2.0)
    assert span == pytest.approx((0.5, 1.5), abs=0.002)
    assert len(waveform) / 16000 == pytest.approx(1.5, abs=0.002)  # no audio is appended
    assert np.abs(waveform[: 16000 // 2 - 200]).max() < 1e-3
    assert np.abs(waveform[16000 // 2 + 200 :]).max() > 1e-3
    reader = AudioReader(info)
    assert reader.read(0.0, 0.4) == (pytest.approx(np.zeros(0)), None)
    assert reader.read(1.6, 2.0)[1] is None


def test_a_single_wrong_time_stamp_of_audio_drops_nothing(video: Maker) -> None:
    info = probe(str(video("x.mov", audio="pcm_s16le", seconds=20.0, fps=5.0)))
    expected, _ = AudioReader(info).read(0.0, 10.0)
    reader = AudioReader(info)
    frames = list(reader._decode(None))
    assert frames[60].time is not None
    frames[60] = frames[60]._replace(time=frames[60].time + 8)
    reader._source = (frame for frame in frames)
    first, _ = reader.read(0.0, 5.0)
    second, span = reader.read(5.0, 10.0)
    assert span == (0.0, 5.0)
    np.testing.assert_allclose(np.concatenate([first, second]), expected, atol=1e-3)
