"""Stretches of recordings that give no sample: one line each, and retried as one."""

import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cavmae.common.json_files import value_as
from cavmae.datasets.format.sample import SampleInfo
from cavmae.datasets.sharding.inputs import Input
from cavmae.datasets.sharding.messages import Alive, Message, Reporter, Skip, Written
from cavmae.datasets.sharding.settings import ShardRunSettings
from tests.conftest import make_shards
from tests.datasets.media.test_irregular import lose_chunks
from tests.datasets.recordings import Track, audio_frames, sweep, video_frames, write
from tests.tools.helpers import RUN_SETTINGS, TINY, infos


def lines(out: Path) -> list[dict[str, Any]]:
    text = (out / "skipped.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def starts(out: Path) -> list[float]:
    return sorted(info.start for info in infos(out))


def sound_with_a_pause(path: Path) -> Path:
    """10 s of frames; sound from 0 to 2 and from 7 to 10 s."""
    frames = [*audio_frames(sweep(0, 2)), *audio_frames(sweep(7, 3), start=7)]
    video = Track("libx264", video_frames(0, 250), {"g": "20"})
    return write(path, video, Track("pcm_s16le", frames))


def test_a_stretch_without_sound_is_one_line(tmp_path: Path) -> None:
    path, out = sound_with_a_pause(tmp_path / "x.mkv"), tmp_path / "out"
    assert make_shards(str(path), out, **TINY) == 0
    assert starts(out) == [0, 1, 7, 8, 9]
    (line,) = lines(out)
    assert (line["reason"], line["clip"], line["clips"]) == ("no_audio", 2, 5)
    assert (line["start"], line["last"]) == (2.0, 6.0)


def test_a_stretch_is_retried_as_one(tmp_path: Path) -> None:
    path, out = sound_with_a_pause(tmp_path / "x.mkv"), tmp_path / "out"
    make_shards(str(path), out, **TINY)
    path.unlink()
    write(
        path,
        Track("libx264", video_frames(0, 250), {"g": "20"}),
        Track("pcm_s16le", audio_frames(sweep(0, 10))),
    )
    again = ShardRunSettings(workers=2, timeout=60.0, retry_skipped=True)
    assert make_shards(str(path), out, again, **TINY) == 0
    assert starts(out) == list(range(10))
    assert lines(out) == []


@given(
    st.lists(st.sampled_from(["", "no_audio", "decode_error"]), max_size=12),
    st.integers(0, 12),
)
def test_every_clip_is_reported_once_and_covered_by_its_retry(
    reasons: list[str], done: int
) -> None:
    messages: list[Message] = []
    reporter = Reporter(messages.append)
    for number, reason in enumerate(reasons):
        start = 0.5 * number
        if reason:
            reporter.skipped(Skip(number, start, reason, "x", 1, start))
        else:
            reporter.written(Written(number, start, 0.5, 1, 0))
    reporter.flush()
    assert sum(isinstance(m, Alive) for m in messages) == sum(map(bool, reasons))
    reports = [m for m in messages if not isinstance(m, Alive)]
    skips = [m for m in reports if isinstance(m, Skip)]
    counts = [m.clips if isinstance(m, Skip) else 1 for m in reports]
    firsts = [m.clip for m in reports]
    assert firsts == np.cumsum([0, *counts])[:-1].tolist()
    assert sum(counts) == len(reasons)
    item = Input("x")
    for line in skips:
        assert line.clip is not None and line.start is not None
        last = line.last if line.clips > 1 else None
        retry = item.retry(line.start, None, last)
        wanted = [i for i in range(len(reasons)) if retry.wants(i, 0.5 * i)]
        assert wanted == list(range(line.clip, line.clip + line.clips))
        assert {reasons[i] for i in wanted} == {line.reason}
        rest = retry.retry(done=(done, 0.5 * done))
        assert [i for i in wanted if rest.wants(i, 0.5 * i)] == [i for i in wanted if i > done]
        stored = json.loads(json.dumps(rest.to_json()))
        assert value_as(Input, stored, "an input") == rest


def test_what_a_damaged_index_loses_is_a_line(tmp_path: Path) -> None:
    tracks = (
        Track("libx264", video_frames(0, 250), {"g": "20"}),
        Track("aac", audio_frames(sweep(0, 10))),
    )
    path, out = write(tmp_path / "x.mp4", *tracks), tmp_path / "out"
    whole = path.read_bytes()
    lose_chunks(path, None)
    assert make_shards(str(path), out, **TINY) == 0
    (line,) = lines(out)
    assert line["reason"] == "truncated"
    assert "of the 10.0 s that its header claims" in line["detail"]
    before = starts(out)
    assert 1 <= len(before) < 9
    path.write_bytes(whole)  # copied again
    again = ShardRunSettings(workers=2, timeout=60.0, retry_skipped=True)
    assert make_shards(str(path), out, again, **TINY) == 0
    assert starts(out)[-1] > 8
    assert lines(out) == []


def test_a_recording_cut_off_before_its_first_clip_is_truncated_not_short(tmp_path: Path) -> None:
    tracks = (
        Track("libx264", video_frames(0, 250), {"g": "20"}),
        Track("aac", audio_frames(sweep(0, 10))),
    )
    path = write(tmp_path / "x.mp4", *tracks, options={"movflags": "faststart"})
    data = path.read_bytes()
    path.write_bytes(data[: data.find(b"mdat") + 1500])
    out = tmp_path / "out"
    assert make_shards(str(path), out, **TINY) == 1
    (line,) = lines(out)
    assert line["reason"] == "truncated"


def test_one_wrong_stamp_is_one_line(tmp_path: Path) -> None:
    def far(number: int, packet: av.Packet) -> None:
        if number == 74:
            packet.pts = packet.dts = round(1e5 / packet.time_base)

    video = Track("libx264", video_frames(0, 75), {"bf": "0"}, far)
    path = write(tmp_path / "x.mkv", video, Track("pcm_s16le", audio_frames(sweep(0, 3))))
    out = tmp_path / "out"
    assert make_shards(str(path), out, **TINY) == 0
    assert len(starts(out)) == 3
    (line,) = lines(out)
    assert line["reason"] == "gap"


def test_another_stream_by_its_number(tmp_path: Path) -> None:
    video = Track("libx264", video_frames(0, 50))
    quiet = Track("pcm_s16le", audio_frames(0.1 * sweep(0, 2)))
    path = write(tmp_path / "x.mkv", video, Track("pcm_s16le", audio_frames(sweep(0, 2))), quiet)
    for number in (1, 2):
        out = tmp_path / str(number)
        assert make_shards(str(path), out, RUN_SETTINGS, audio_stream=number, **TINY) == 0
        info: SampleInfo = infos(out)[0]
        assert (info.audio_stream, info.audio_streams) == (number, 2)
        assert (info.video_stream, info.mixdown) == (0, "mono")
    out = tmp_path / "3"
    assert make_shards(str(path), out, RUN_SETTINGS, audio_stream=7, **TINY) == 1
    assert lines(out)[0]["detail"] == "stream 7 is no audio stream; the audio streams are 1, 2"
    assert lines(out)[0]["reason"] == "no_stream"


@pytest.mark.parametrize("profile", ["speakers", "events"])
def test_a_still_end_fills_its_clips(tmp_path: Path, profile: str) -> None:
    video = Track("libx264", video_frames(0, 25))
    path = write(tmp_path / "x.mkv", video, Track("pcm_s16le", audio_frames(sweep(0, 6))))
    out = tmp_path / "out"
    options = {**TINY, "profile": profile, "clip_seconds": 2.0}
    assert make_shards(str(path), out, RUN_SETTINGS, **options) == 0
    assert starts(out) == [0, 2, 4]
    last = max(infos(out), key=lambda info: info.start)
    assert last.frame_times == (pytest.approx(0.96 - 4),)
