import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cavmae.common.errors import UsageError
from cavmae.datasets.media import MediaError, Probe
from cavmae.datasets.sharding.clip_extraction import mask_value_names
from cavmae.datasets.sharding.planning import choose_frames, plan_clips
from cavmae.datasets.sharding.settings import ShardSettings

EVENTS = ShardSettings("events").resolved()
SPEAKERS = ShardSettings("speakers").resolved()


def lengths(seconds: float, settings: ShardSettings) -> list[float]:
    return [round(b - a, 3) for a, b in plan_clips((0.0, seconds), None, None, settings)]


def test_events_clips() -> None:
    assert lengths(10.0, EVENTS) == [10.0]
    assert lengths(9.97, EVENTS) == [9.97]
    assert lengths(10.02, EVENTS) == [10.0]
    assert lengths(25.0, EVENTS) == [10.0, 10.0, 5.0]
    assert lengths(21.0, EVENTS) == [10.0, 10.0]


def test_speakers_clips() -> None:
    assert lengths(3.0, SPEAKERS) == [3.0]
    assert lengths(5.12, SPEAKERS) == [5.12]
    assert lengths(8.0, SPEAKERS) == [5.12, 2.88]
    assert lengths(7.0, SPEAKERS) == [3.52, 3.48]  # nothing is lost
    assert lengths(2.56, SPEAKERS) == [2.56]


def test_a_stretch_of_a_video() -> None:
    assert plan_clips((0.0, 60.0), 30.0, 40.0, EVENTS) == [(30.0, 40.0)]
    assert plan_clips((0.5, 60.0), None, 8.5, EVENTS) == [(0.5, 8.5)]
    assert plan_clips((0.0, 33.0), 30.0, 40.0, EVENTS) == [(30.0, 33.0)]


@pytest.mark.parametrize("span", [(0.0, 1.0), (0.0, 0.04), (0.0, 31.0)])
def test_too_short(span: tuple[float, float]) -> None:
    with pytest.raises(MediaError, match="too_short"):
        plan_clips(span, 30.0 if span[1] > 30 else None, None, EVENTS)


@given(st.floats(2.6, 500), st.floats(0, 3))
def test_speakers_clips_cover_the_video(seconds: float, start: float) -> None:
    clips = plan_clips((start, start + seconds), None, None, SPEAKERS)
    assert clips[0][0] == start
    assert start + seconds - clips[-1][1] < 0.21
    for (_, end), (begin, _) in itertools.pairwise(clips):
        assert end == pytest.approx(begin)
    for begin, end in clips:
        assert 2.559 <= end - begin <= 5.121


def video(times: np.ndarray) -> Probe:
    return Probe(
        path="x", container="mov", origin=0.0, frame_times=times, frame_duration=0.04,
        frame_stamps=np.arange(len(times)), listing=None, packet_pts=np.arange(len(times)),
        packet_keys=np.ones(len(times), bool), video_restarts=(), audio_offsets=((0, 0.0),),
        width=64, height=64, pixel_aspect=1.0, rotation=0, mirrored=False, transfer="",
        codec="h264", audio_rate=16000, audio_span=(0.0, 10.0), audio_packets=500,
        video_stream=0, audio_stream=1,
        video_streams=1, audio_streams=1, truncated=False,
    )  # fmt: skip


def test_events_frames_are_those_of_the_reference() -> None:
    times = np.arange(250) / 25
    indices = choose_frames(video(times), 0.0, 10.0, EVENTS)
    assert indices.tolist() == [int(i * 250 / 10) for i in range(10)]


def test_speakers_frames_of_a_25_hz_video_are_all_of_them() -> None:
    times = np.arange(250) / 25 + np.random.default_rng(0).uniform(-1e-3, 1e-3, 250)
    assert choose_frames(video(times), 0.0, 5.12, SPEAKERS).tolist() == list(range(128))
    assert choose_frames(video(times), 5.12, 10.0, SPEAKERS).tolist() == list(range(128, 250))


@pytest.mark.parametrize("rate", [29.97, 50.0, 60.0, 120.0])
def test_speakers_frames_of_faster_videos_are_the_nearest(rate: float) -> None:
    times = np.arange(round(10 * rate)) / rate
    indices = choose_frames(video(times), 2.0, 4.56, SPEAKERS)
    grid = 2.0 + np.arange(64) / 25
    assert np.abs(times[indices] - grid).max() <= 0.5 / rate + 1e-6


def test_a_slow_video_keeps_its_own_frames() -> None:
    times = np.arange(125) / 12.5
    assert choose_frames(video(times), 0.0, 5.12, SPEAKERS).tolist() == list(range(64))


def test_a_slide_show_shows_what_is_on_screen() -> None:
    times = np.array([0.0, 4.0, 9.5])
    assert choose_frames(video(times), 0.0, 10.0, EVENTS).tolist() == [0, 1]
    assert choose_frames(video(times), 5.0, 9.0, EVENTS).tolist() == [1]
    assert choose_frames(video(times), 7.0, 12.0, SPEAKERS).tolist() == [1, 2]


def test_meaning_of_masks() -> None:
    assert mask_value_names({0, 1, 2, 3}) == {
        "1": "person 1 body",
        "2": "person 1 face",
        "3": "person 2 body",
    }


@pytest.mark.parametrize(
    "change",
    [
        {"clip_seconds": 0.0},
        {"min_seconds": 11.0},
        {"frames": 0},
        {"frames": 5, "frame_rate": 5.0},
        {"shorter_side": 100},
        {"shard_samples": 0},
    ],
)
def test_settings_that_make_no_sense(change: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        ShardSettings(**change).resolved()  # type: ignore[arg-type]


def test_settings_override_the_profile() -> None:
    settings = ShardSettings("speakers", frames=3, clip_seconds=4.0).resolved()
    assert (settings.frames, settings.frame_rate, settings.clip_seconds) == (3, None, 4.0)
    assert settings.min_seconds == 2.56
    assert dataclasses.replace(EVENTS).resolved() == EVENTS
