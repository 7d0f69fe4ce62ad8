"""Frames late in a file: decoding begins at a key frame before them, with the same result."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import av
import numpy as np
import pytest

from cavmae.datasets.media import Probe, frames, open_decoder, probe
from cavmae.datasets.media.geometry import geometry
from cavmae.datasets.media.packet_plan import DROP, plan_packets, run_up
from tests.datasets.recordings import Track, audio_frames, sweep, video_frames, write

COUNT = 450
KINDS = {
    "mp4": ("libx264", {"g": "20", "bf": "2"}, "aac"),
    "ts": ("libx264", {"g": "20", "bf": "2"}, "aac"),
    "mkv": ("libx264", {"g": "20", "bf": "2", "x264-params": "open-gop=1"}, "aac"),
    "flv": ("libx264", {"g": "20", "bf": "0"}, "aac"),
    "avi": ("mpeg4", {"g": "20"}, "mp3"),
}


@pytest.fixture(scope="module", params=KINDS)
def info(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Probe:
    codec, options, sound = KINDS[request.param]
    path = tmp_path_factory.mktemp("seeking") / f"x.{request.param}"
    video = Track(codec, video_frames(0, COUNT), options)
    return probe(str(write(path, video, Track(sound, audio_frames(sweep(0, COUNT / 25))))))


@pytest.fixture
def entries(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Packets at which reading of a file has begun."""
    begun: list[int] = []
    numbered = frames._numbered_packets

    def note(
        info: Probe, container: Any, video: Any, entry: int
    ) -> Iterator[tuple[int, av.Packet]]:
        begun.append(entry)
        return numbered(info, container, video, entry)

    monkeypatch.setattr(frames, "_numbered_packets", note)
    return begun


def read(info: Probe, wanted: np.ndarray, first: int = 0) -> dict[int, np.ndarray]:
    shape = geometry(info, 64, "square")
    found: dict[int, np.ndarray] = {}
    with contextlib.closing(open_decoder(info, shape, wanted)) as decoder:
        for place in range(0, len(wanted), 7):
            found.update(decoder.read(wanted[place : place + 7].tolist()))
    return {i: frame for i, frame in found.items() if i >= first}


def assert_same(first: dict[int, np.ndarray], second: dict[int, np.ndarray]) -> None:
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[i], second[i]) for i in first)


def test_late_frames_are_those_of_a_whole_pass(info: Probe, entries: list[int]) -> None:
    late = np.arange(400, COUNT)
    whole = read(info, np.arange(COUNT), 400)
    assert entries == [0]
    assert_same(read(info, late), whole)
    assert len(whole) == len(late)
    assert len(entries) == 2 and 300 < entries[1] < 400
    entry = int(np.argmax(plan_packets(info, late) != DROP))
    assert entries[1] == entry
    assert np.flatnonzero(info.packet_pts == info.frame_stamps[400])[0] - entry == run_up(info, 400)


@pytest.mark.parametrize("frame", [None, 425])
def test_a_seek_that_leads_elsewhere(info: Probe, entries: list[int], frame: int | None) -> None:
    """The stamp of the entry, or of a later packet, is not that of the probe: all are read."""
    wanted = np.array([i for i in range(400, COUNT) if i != frame])
    whole = read(info, np.arange(COUNT), 400)
    entry = int(np.argmax(plan_packets(info, wanted) != DROP))
    stamps = info.packet_pts.copy()
    stamps[entry if frame is None else stamps == info.frame_stamps[frame]] += 1
    frames_read = read(dataclasses.replace(info, packet_pts=stamps), wanted)
    assert entries == [0, entry, 0]
    assert_same(frames_read, {i: image for i, image in whole.items() if i != frame})


@pytest.mark.parametrize("late", [5, 6, 13])
def test_frames_that_come_late_are_not_missing(late: int) -> None:
    """A frame that the decoder gives only after others that follow it, at the end of a read."""
    order = [*range(late), *range(late + 1, late + 4), late, *range(late + 4, 40)]

    class Filled:
        def convert(self, frame: Any) -> np.ndarray:
            return np.full((1, 1, 3), frame, np.uint8)

    class Disordered(frames.PyAVDecoder):
        def __init__(self) -> None:
            self._plan, self._stash, self._last = None, {}, -1
            self._output, self._converter = self._numbers(), Filled()

        def _numbers(self) -> Any:
            for index in order:
                self._last = max(self._last, index)
                yield index, index

    decoder = Disordered()
    for first in range(0, 21, 7):
        given = decoder.read(list(range(first, first + 7)))
        assert {i: int(frame[0, 0, 0]) for i, frame in given.items()} == {
            i: i for i in range(first, first + 7)
        }
