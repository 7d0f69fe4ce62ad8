"""Irregular time stamps, clocks and indexes of cameras, browsers and broadcasters."""

import itertools
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import pytest

from cavmae.datasets.media import AudioReader, MediaError, probe
from cavmae.datasets.media.geometry import geometry
from cavmae.datasets.media.playback import Playback
from cavmae.tools.benchmarks.media import read_number
from tests.datasets.recordings import (
    RATE,
    X264,
    Track,
    assert_in_step,
    audio_frames,
    by_time,
    numbers,
    packets_of,
    pitch_times,
    sweep,
    video_frames,
    write,
)  # fmt: skip


@pytest.mark.parametrize("every", [5, 60])
def test_two_frames_with_one_stamp(tmp_path: Path, every: int) -> None:
    """Browsers' recorders and containers that count milliseconds."""
    last: list[int] = [0]

    def repeat(number: int, packet: av.Packet) -> None:
        if number % every == every - 1:
            packet.pts = packet.dts = last[0]
        last[0] = packet.pts or 0

    video = Track("libx264", video_frames(0, 100), {"g": "20", "bf": "0"}, repeat)
    info = assert_in_step(
        write(tmp_path / "x.mkv", video, Track("pcm_s16le", audio_frames(sweep(0, 4)))), 4
    )
    assert info.listing is not None


@pytest.mark.parametrize("ending", ["ts", "mpg"])
@pytest.mark.parametrize("b_frames", ["0", "2"])
def test_recordings_joined_end_to_end(tmp_path: Path, ending: str, b_frames: str) -> None:
    codecs = {"ts": ("libx264", "aac"), "mpg": ("mpeg2video", "mp2")}[ending]
    joined = tmp_path / f"joined.{ending}"
    with joined.open("wb") as file:
        for part in range(3):
            video = Track(codecs[0], video_frames(50 * part, 50), {"g": "20", "bf": b_frames})
            audio = Track(codecs[1], audio_frames(sweep(2 * part, 2)))
            form = {"ts": "mpegts", "mpg": "mpeg"}[ending]
            path = write(tmp_path / f"{part}.{ending}", video, audio, format=form)
            file.write(path.read_bytes())
    info = assert_in_step(joined, 6, 1.1 / RATE)
    assert len(info.video_restarts) == 2
    assert info.remarks == ()


def restamp_flv(path: Path, change: Callable[[int, int], int]) -> None:
    """Alters the stamps of an FLV's audio: ``change(number, milliseconds)``."""
    data = bytearray(path.read_bytes())
    place, number = 13, 0
    while place + 11 <= len(data):
        kind, size = data[place], int.from_bytes(data[place + 1 : place + 4], "big")
        stamp = int.from_bytes(data[place + 4 : place + 7], "big") | data[place + 7] << 24
        if kind == 8:
            stamp = change(number, stamp)
            data[place + 4 : place + 7] = (stamp & 0xFFFFFF).to_bytes(3, "big")
            data[place + 7] = stamp >> 24
            number += 1
        place += 15 + size
    path.write_bytes(data)


def make_flv(path: Path) -> Path:
    audio = Track("aac", audio_frames(sweep(0, 4, 44100), 44100))
    return write(path, Track("libx264", video_frames(0, 100), X264), audio)


def test_audio_that_steps_back_alone_overwrites_nothing(tmp_path: Path) -> None:
    """A live source whose encoder restarted and counts 0.7 s less."""
    path = make_flv(tmp_path / "x.flv")
    restamp_flv(path, lambda number, stamp: stamp - 700 * (number >= 100))
    assert assert_in_step(path, 4).listing is None


@pytest.mark.parametrize("number", [60, 171])
def test_a_single_packet_of_audio_that_is_days_away(tmp_path: Path, number: int) -> None:
    path = make_flv(tmp_path / "x.flv")
    restamp_flv(path, lambda n, stamp: 100_000_000 if n == number else stamp)
    info = assert_in_step(path, 4)
    assert info.span[1] < 4.2


def test_packets_without_a_stamp(tmp_path: Path) -> None:
    """A stamp for every third frame only, as programme streams may have it."""
    path = write(
        tmp_path / "x.ts", Track("libx264", video_frames(0, 100), {"g": "20", "bf": "0"}),
        Track("aac", audio_frames(sweep(0, 4))),
    )  # fmt: skip
    info = probe(str(path))
    assert info.listing is None
    data = bytearray(path.read_bytes())
    for number, place in enumerate(pes_headers(data)):
        if number % 3:
            data[place + 7] &= 0x3F  # "no PTS, no DTS"
            data[place + 9 : place + 9 + data[place + 8]] = b"\xff" * data[place + 8]
    path.write_bytes(data)
    assert assert_in_step(path, 4).listing is not None


def pes_headers(data: bytes | bytearray) -> Iterator[int]:
    """Places of the headers of video PES packets in a transport stream."""
    for first in range(0, len(data), 188):
        place = data.find(b"\0\0\1\xe0", first, first + 60)
        if place >= 0 and data[first + 1] & 0x40:
            yield place


@pytest.mark.parametrize("codec", ["libvpx", "libvpx-vp9"])
def test_frames_that_are_never_visible(tmp_path: Path, codec: str) -> None:
    """Alternate references: packets with distinct stamps that give no frame."""
    path = tmp_path / "x.mkv"
    options = {"deadline": "realtime", "cpu-used": "8"}
    with av.open(str(path), "w") as container:
        video = container.add_stream(codec, rate=RATE, options=options)
        audio = Track("pcm_s16le", audio_frames(sweep(0, 4)))
        assert isinstance(video, av.VideoStream)
        video.width, video.height, video.pix_fmt, video.gop_size = 96, 64, "yuv420p", 1
        frames = []
        for packet in itertools.chain.from_iterable(
            video.encode(frame) for frame in [*video_frames(0, 100), None]
        ):
            if len(frames) % 11 == 10:
                data = bytearray(packet)
                data[0] &= 0xEF if codec == "libvpx" else 0xFD  # show_frame
                hidden = av.Packet(bytes(data))
                hidden.time_base, hidden.stream, hidden.is_keyframe = packet.time_base, video, True
                hidden.pts = hidden.dts = packet.pts - round(0.01 / packet.time_base)
                frames.append(hidden)
            frames.append(packet)
        for packet in by_time([frames, list(packets_of(container, audio))]):
            container.mux(packet)
    info = assert_in_step(path, 4)
    if codec == "libvpx":  # VP9's go into one packet with the frame that is shown
        assert len(info.packet_pts) > 105
    assert len(info.frame_times) == 100
    assert numbers(info) == {i: i for i in range(100)}


@pytest.mark.parametrize("ending", ["mkv", "mp4"])
def test_the_last_frame_stays_while_the_audio_goes_on(tmp_path: Path, ending: str) -> None:
    """A screen recording in which nothing moves after 1 s."""
    video = Track("libx264", video_frames(0, 25), X264)
    path = write(tmp_path / f"x.{ending}", video, Track("aac", audio_frames(sweep(0, 6))))
    info = probe(str(path))
    assert info.span[1] == pytest.approx(6, abs=0.06)
    assert info.remarks == ()
    with Playback(info, geometry(info, 64, "square")) as playing:
        assert playing.frames >= 148
        assert read_number(playing.read_frames(0, playing.frames)[140]) == 24
        assert playing.has_frame.all()


def lose_chunks(path: Path, handler: bytes | None) -> None:
    """Alters a chunk's place in the index of an MP4: of one kind of track, or of all."""
    data = bytearray(path.read_bytes())
    place = -1
    while (place := data.find(b"stco", place + 1)) > 0:
        track = data[data.rfind(b"trak", 0, place) : place]
        if handler is not None and handler not in track:
            continue
        count = struct.unpack(">I", data[place + 8 : place + 12])[0]
        data[place + 12 + 4 * (count // 3)] ^= 0x7F
    path.write_bytes(data)


def test_a_damaged_index_is_noticed(tmp_path: Path) -> None:
    """FFmpeg stops at it without an error."""
    tracks = Track("libx264", video_frames(0, 250), X264), Track("aac", audio_frames(sweep(0, 10)))
    path = write(tmp_path / "x.mp4", *tracks)
    assert probe(str(path)).unused == ()
    lose_chunks(path, None)
    info = probe(str(path))
    (part,) = info.unused
    assert part.reason == "truncated"
    assert part.start == pytest.approx(info.span[1])
    assert "of the 10.0 s that its header claims" in part.detail


@pytest.mark.parametrize("name", ["x.mkv", "x.mp4"])
def test_a_claim_that_covers_more_than_what_is_read(tmp_path: Path, name: str) -> None:
    """A clock that does not begin at 0; a longer stream that is not read."""
    late = (
        Track("libx264", video_frames(0, 75, 5.0), X264),
        Track("aac", audio_frames(sweep(0, 3), start=5.0)),
    )
    info = probe(str(write(tmp_path / f"late-{name}", *late)))
    assert info.span[1] == pytest.approx(3, abs=0.1)
    assert info.unused == ()
    tracks = [Track("libx264", video_frames(0, 75), X264), Track("aac", audio_frames(sweep(0, 3)))]
    tracks.append(Track("aac", audio_frames(sweep(0, 9))))
    path = write(tmp_path / f"longer-{name}", *tracks)
    info = probe(str(path), audio_stream=1)
    assert info.span[1] == pytest.approx(3, abs=0.1)
    assert info.unused == ()
    if name == "x.mkv":  # an MP4 ends with its index
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        assert "of the 9.0 s that its header claims" in probe(str(path), 0, 1).unused[0].detail


def test_frames_lost_to_a_damaged_index_are_not_a_still_end(tmp_path: Path) -> None:
    tracks = Track("libx264", video_frames(0, 250), X264), Track("aac", audio_frames(sweep(0, 10)))
    path = write(tmp_path / "x.mp4", *tracks)
    lose_chunks(path, b"vide")
    info = probe(str(path))
    if info.audio_span[1] > info.video_span[1] + 1:  # else FFmpeg gave up on both
        assert info.span[1] == info.video_span[1]
    assert info.unused[0].reason == "truncated"


def test_a_single_frame_that_is_days_away(tmp_path: Path) -> None:
    def far(number: int, packet: av.Packet) -> None:
        if number == 74:
            packet.pts = packet.dts = round(1e5 / packet.time_base)

    video = Track("libx264", video_frames(0, 75), {"bf": "0"}, far)
    info = probe(
        str(write(tmp_path / "x.mkv", video, Track("pcm_s16le", audio_frames(sweep(0, 3)))))
    )
    assert info.span[1] < 3.1
    assert [part.reason for part in info.unused] == ["gap"]
    assert "(1 of the video, 0 of the audio)" in info.unused[0].detail


def stamp_later(path: Path, kind: int, number: int, milliseconds: int) -> None:
    """Alters a single time stamp of an FLV file: of a tag of audio (8) or of video (9)."""
    data = bytearray(path.read_bytes())
    place = 13
    while place < len(data):
        if data[place] == kind and data[place + 12]:  # 0: configuration of the decoder
            if number == 0:
                stamp = int.from_bytes(data[place + 4 : place + 7], "big") + milliseconds
                data[place + 4 : place + 7] = stamp.to_bytes(3, "big")
            number -= 1
        place += 11 + int.from_bytes(data[place + 1 : place + 4], "big") + 4
    path.write_bytes(data)


@pytest.mark.parametrize("number", [0, 1, 40])
@pytest.mark.parametrize("kind", [8, 9])
@pytest.mark.parametrize("milliseconds", [5000, 60_000])
def test_a_single_time_stamp_that_is_seconds_late_moves_nothing(
    tmp_path: Path, kind: int, number: int, milliseconds: int
) -> None:
    """Such a stamp is no restart, which would put all later packets out of step."""
    tracks = (
        Track("libx264", video_frames(0, 75), {"bf": "0"}),
        Track("aac", audio_frames(sweep(0, 3, 44100), 44100)),
    )
    path = write(tmp_path / "x.flv", *tracks)
    stamp_later(path, kind, number, milliseconds)
    info = assert_in_step(path, 3)
    assert info.span[1] < 3.2


def test_a_recording_that_begins_hours_late(tmp_path: Path) -> None:
    """A first frame stamped 0, all others by the time of day."""

    def early(number: int, packet: av.Packet) -> None:
        if number:
            packet.pts = packet.dts = (packet.pts or 0) + round(36000 / packet.time_base)

    video = Track("libx264", video_frames(0, 75), {"bf": "0"}, early)
    audio = Track("pcm_s16le", audio_frames(sweep(0, 3), start=36000))
    info = probe(str(write(tmp_path / "x.mkv", video, audio)))
    assert info.span[1] == pytest.approx(3, abs=0.1)
    assert pitch_times(AudioReader(info).read(0.0, 3.0)[0]) == pytest.approx(0, abs=0.06)


def test_audio_stamped_by_the_time_of_day(tmp_path: Path) -> None:
    video, audio = (
        Track("libx264", video_frames(0, 75)),
        Track("pcm_s16le", audio_frames(sweep(0, 3), start=36000)),
    )
    path = write(tmp_path / "x.mkv", video, audio)
    with pytest.raises(
        MediaError, match=r"frames are stamped 0.0 to .* the audio 36000.0 to"
    ) as caught:
        probe(str(path))
    assert caught.value.reason == "clocks_apart"


def test_a_stream_that_begins_late(tmp_path: Path) -> None:
    """Captions of an FLV begin after the minute in which FFmpeg searches for streams."""
    video = Track("libx264", video_frames(0, 100), {"g": "20", "bf": "0"})
    path = write(tmp_path / "x.flv", video, Track("aac", audio_frames(sweep(0, 4, 44100), 44100)))
    data = bytearray(path.read_bytes())
    place = last = 13
    while place + 11 <= len(data):
        last, size = place, int.from_bytes(data[place + 1 : place + 4], "big")
        stamp = 20 * int.from_bytes(data[place + 4 : place + 7], "big")
        data[place + 4 : place + 7] = stamp.to_bytes(3, "big")
        place += 15 + size
    text = b"\2\0\x0aonTextData\x08\0\0\0\1\0\4text\2\0\2hi\0\0\x09"
    tag = b"\x12" + len(text).to_bytes(3, "big") + data[last + 4 : last + 8] + b"\0\0\0" + text
    data[last:last] = tag + len(tag).to_bytes(4, "big")
    path.write_bytes(data)
    info = probe(str(path))
    assert info.video_span[1] > 79
    assert numbers(info) == {i: i for i in range(100)}
    waveform, span = AudioReader(info).read(0.0, 4.0)
    assert span is not None
    assert waveform.any()


@pytest.mark.parametrize("ending", ["mp4", "mkv", "ts"])
def test_frames_predicted_from_a_damaged_key_frame(tmp_path: Path, ending: str) -> None:
    """The decoder predicts them from grey, or from the frame before."""
    video = Track("libx264", video_frames(0, 75), {"g": "25", "bf": "2", "sc_threshold": "0"})
    path = write(tmp_path / f"x.{ending}", video, Track("aac", audio_frames(sweep(0, 3))))
    with av.open(str(path)) as container:
        packets = [p for p in container.demux(video=0) if p.size and p.is_keyframe]
    assert len(packets) == 3
    data = bytearray(path.read_bytes())
    if ending == "ts":
        first = packets[1].pos
        del data[first + 188 : first + 2 * 188]  # a packet that was not received
    else:
        first = data.find(bytes(packets[1])) + 5  # the slice's header
        data[first : first + 8] = bytes(8)
    path.write_bytes(data)
    info = probe(str(path))
    assert len(info.frame_times) == 75
    read = numbers(info)
    assert {i: n for i, n in read.items() if i != n} == {}
    assert {*range(23), *range(50, 75)} <= set(read)
    assert not set(range(25, 50)) & set(read)


FRAGMENTS = {"movflags": "frag_keyframe+empty_moov"}


def test_a_damaged_fragment_is_noticed(tmp_path: Path) -> None:
    """FFmpeg ends there without an error, and no header says how long the file is."""
    tracks = Track("libx264", video_frames(0, 250), X264), Track("aac", audio_frames(sweep(0, 10)))
    path = write(tmp_path / "x.mp4", *tracks, options=FRAGMENTS)
    whole = path.read_bytes()
    assert probe(str(path)).unused == ()
    path.write_bytes(whole + bytes(5000))  # padding
    assert probe(str(path)).unused == ()
    place = whole.find(b"moof", len(whole) // 2)
    for damaged in (whole[: place + 2] + whole[place + 60 :], whole[: place + 5000]):
        path.write_bytes(damaged)
        info = probe(str(path))
        (part,) = info.unused
        assert part.reason == "truncated"
        assert part.start == pytest.approx(info.span[1])
        assert 2 < info.span[1] < 8


def test_an_avi_that_is_cut_off_is_noticed(tmp_path: Path) -> None:
    tracks = (
        Track("mpeg4", video_frames(0, 250), {"g": "20"}),
        Track("mp3", audio_frames(sweep(0, 10))),
    )
    path = write(tmp_path / "x.avi", *tracks)
    assert probe(str(path)).unused == ()
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    info = probe(str(path))
    (part,) = info.unused
    assert part.reason == "truncated"
    assert 3 < info.span[1] < 7
