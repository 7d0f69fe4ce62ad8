"""Playback of media files on a grid of 25 Hz."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cavmae.datasets.media import probe
from cavmae.datasets.media.geometry import geometry
from cavmae.datasets.media.playback import SAMPLES, Playback, extent
from cavmae.tools.benchmarks.media import read_number

Maker = Callable[..., Path]


def play(path: Path) -> Playback:
    info = probe(str(path))
    return Playback(info, geometry(info, 64, "square"))


def numbers(playing: Playback, length: int, hop: int) -> list[int]:
    """Numbers in the frames of overlapping windows, which must agree on common frames."""
    by_index: dict[int, int] = {}
    for start in range(0, playing.frames, hop):
        for place, frame in enumerate(playing.read_frames(start, length)):
            number = read_number(frame)
            assert by_index.setdefault(start + place, number) == number
    return [by_index[i] for i in range(playing.frames)]


@given(seconds=st.floats(1e-3, 4e4))
@example(seconds=144_001 / 48_000)
def test_frames_and_samples_of_a_recording_end_together(seconds: float) -> None:
    frames, samples = extent(seconds)
    assert (frames - 1) * 640 < samples <= frames * 640
    assert abs(samples - seconds * 16_000) <= 1


@pytest.mark.parametrize("fps", [25.0, 50.0, 12.5, 30000 / 1001])
@pytest.mark.parametrize("hop", [3, 8])
def test_every_grid_time_has_the_frame_on_screen(video: Maker, fps: float, hop: int) -> None:
    with play(video(fps=fps, seconds=2.0)) as playing:
        assert playing.frames in (50, 51)
        read = numbers(playing, 8, hop)[:50]
    exact = np.arange(50) / 25 * fps
    assert np.abs(np.array(read) - exact).max() <= 1
    if fps in (12.5, 25.0, 50.0):
        assert read == np.floor(exact + 1e-6).astype(int).tolist()


def test_frames_of_any_spacing(video: Maker) -> None:
    times = np.round(np.cumsum([0.0, *[0.02, 0.09, 0.05] * 10]), 3)
    with play(video("vfr.mp4", frame_times=tuple(times))) as playing:
        read = numbers(playing, 16, 16)
    for index, number in enumerate(read[:-2]):
        assert times[number] <= index / 25 + 0.021
        assert number + 1 == len(times) or times[number + 1] > index / 25 + 0.019


def test_frames_are_black_before_the_first_one_and_the_last_one_stays(video: Maker) -> None:
    path = video("late.mkv", seconds=2.0, video_start=0.8, audio_seconds=4.0, size=(96, 64))
    with play(path) as playing:
        assert playing.frames >= 95
        frames = np.stack(playing.read_frames(0, playing.frames))
        has_frame = playing.has_frame
    assert not has_frame[:19].any()
    assert has_frame[22:].all()
    assert not frames[:19].any()
    assert read_number(frames[30]) == 10
    assert [read_number(frame) for frame in frames[70:]] == [49] * (len(frames) - 70)


def test_overlapping_segments_of_audio_agree(video: Maker) -> None:
    path = video("pcm.mkv", audio="pcm_s16le", rate=16000, seconds=2.0, events=(0.5, 1.5))
    with play(path) as playing:
        whole = playing.read_audio(0, playing.frames)
    assert whole.shape == (playing.frames * SAMPLES,)
    with play(path) as playing:
        for start in range(0, 48, 5):
            part = playing.read_audio(start, 16)
            beyond = np.pad(whole, (0, 20 * SAMPLES))[start * SAMPLES : (start + 16) * SAMPLES]
            np.testing.assert_allclose(part, beyond, atol=2e-4)


def test_buffers_do_not_grow(video: Maker) -> None:
    with play(video(seconds=6.0)) as playing:
        for start in range(0, playing.frames, 8):
            playing.read_frames(start, 16)
            playing.read_audio(start, 16)
            assert len(playing._cached) <= 17
            assert len(playing._waveform) <= 16 * SAMPLES


@pytest.mark.parametrize("read", [0, 30, 60])
def test_a_rewound_recording_plays_as_a_new_one(video: Maker, read: int) -> None:
    path = video("late.mkv", seconds=2.0, video_start=0.8, audio_seconds=4.0, size=(96, 64))
    with play(path) as playing, play(path) as fresh:
        playing.read_frames(0, read)
        playing.read_audio(read // 2, read)
        playing.rewind()
        for start in (0, 20, 75):
            np.testing.assert_array_equal(
                playing.read_audio(start, 25), fresh.read_audio(start, 25)
            )
            for mine, other in zip(
                playing.read_frames(start, 25), fresh.read_frames(start, 25), strict=True
            ):
                np.testing.assert_array_equal(mine, other)
        assert (playing.missing, playing.mixdown) == (fresh.missing, fresh.mixdown)
