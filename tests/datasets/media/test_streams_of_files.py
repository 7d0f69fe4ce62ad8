"""Selection of streams, and their channels, sizes, orientation and colours."""

import itertools
import os
import struct
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from cavmae.datasets.media import AudioReader, MediaError, open_decoder, probe
from cavmae.datasets.media.decoding import orientation
from cavmae.datasets.media.downmix import weights_of
from cavmae.datasets.media.geometry import Geometry, fit_inside, geometry
from cavmae.datasets.media.hdr import to_sdr
from cavmae.tools.benchmarks.media import read_number
from tests.datasets.recordings import (
    X264,
    Track,
    assert_in_step,
    audio_frames,
    by_time,
    packets_of,
    pitch_times,
    sweep,
    video_frames,
    write,
)  # fmt: skip


def test_the_stream_that_players_take(tmp_path: Path) -> None:
    quiet, voice = np.zeros(48000 * 2, np.float32), sweep(0, 2)
    path = tmp_path / "x.mkv"
    with av.open(str(path), "w") as container:
        tracks = [
            Track("libx264", video_frames(0, 50)),
            Track("pcm_s16le", audio_frames(quiet)),
            Track("pcm_s16le", audio_frames(voice)),
        ]
        packets = [list(packets_of(container, track)) for track in tracks]
        container.streams[1].disposition = av.stream.Disposition.comment
        container.streams[2].disposition = av.stream.Disposition.default
        for packet in by_time(packets):
            container.mux(packet)
    info = assert_in_step(path, 2)
    assert (info.audio_stream, info.audio_streams) == (2, 2)
    assert info.remarks == ("of 2 audio streams number 2 is read",)
    named = probe(str(path), audio_stream=1)
    assert not AudioReader(named).read(0.0, 2.0)[0].any()
    with pytest.raises(MediaError, match=r"no_stream.*the audio streams are 1, 2"):
        probe(str(path), audio_stream=0)


LAYOUTS = {
    "mono": [0.3], "stereo": [0.3, 0.3], "inverted": [0.3, -0.3], "centre": [0, 0, 0.3, 0, 0, 0],
    "effects": [0, 0, 0, 0.3, 0, 0], "back": [0, 0, 0, 0, 0.3, 0],
}  # fmt: skip
MIXED = {
    "mono": 0.3, "stereo": 0.3, "inverted": 0.3, "centre": 0.3 * 0.5**0.5, "effects": 0.0,
    "back": 0.3 * 0.5**1.5,
}  # fmt: skip


@pytest.mark.parametrize("kind", LAYOUTS)
def test_channels_are_mixed_by_the_usual_weights(tmp_path: Path, kind: str) -> None:
    weights = np.array(LAYOUTS[kind], np.float32)[:, None]
    layout = {1: "mono", 2: "stereo", 6: "5.1"}[len(weights)]
    audio = Track("pcm_s16le", audio_frames(weights / 0.3 * sweep(0, 2), layout=layout))
    path = write(tmp_path / "x.mkv", Track("libx264", video_frames(0, 50)), audio)
    reader = AudioReader(probe(str(path)))
    waveform, _ = reader.read(0.0, 1.8)
    assert np.sqrt(2 * np.mean(waveform**2)) == pytest.approx(MIXED[kind], abs=0.003)
    notes = {1: "mono", 2: "stereo: mean", 6: "5.1: weighted"}
    expected = "stereo: one channel inverted" if kind == "inverted" else notes[len(weights)]
    assert reader.mixdown == (expected,)
    assert np.abs(AudioReader(probe(str(path)), "first").read(0.0, 1.8)[0]).max() == pytest.approx(
        abs(LAYOUTS[kind][0]), abs=0.003
    )


def test_a_doubtful_segment_is_mixed_as_the_segment_before(tmp_path: Path) -> None:
    """A second of inverted channels, a second of unlike channels, a second of equal channels."""
    left = sweep(0, 3)
    right = np.concatenate([-left[:48000], 0.5 * -left[48000:96000], left[96000:]])
    right[48000:96000] += sweep(7, 1)
    both = Track("pcm_s16le", audio_frames(np.stack([left, right]), layout="stereo"))
    info = probe(str(write(tmp_path / "x.mkv", Track("libx264", video_frames(0, 75)), both)))

    def mixed(steady: bool) -> list[tuple[str, ...]]:
        reader, notes = AudioReader(info, steady=steady), []
        for second in range(3):
            reader.read(second, second + 0.95)
            notes.append(reader.mixdown)
        return notes

    upright, inverted = ("stereo: mean",), ("stereo: one channel inverted",)
    assert mixed(False) == [inverted, upright, upright]
    assert mixed(True) == [inverted, inverted, upright]


def test_numbers_that_are_none_do_not_hide_an_inverted_channel(tmp_path: Path) -> None:
    wave = np.stack([sweep(0, 2), -sweep(0, 2)])
    places = audio_frames(wave, layout="stereo")
    wave[0, 48000] = np.nan
    frames = []
    for frame, first in zip(places, range(0, 96000, 1024), strict=False):
        part = np.ascontiguousarray(wave[:, first : first + 1024])
        again = av.AudioFrame.from_ndarray(part.T.reshape(1, -1).copy(), "flt", "stereo")
        again.sample_rate, again.time_base, again.pts = 48000, frame.time_base, frame.pts
        frames.append(again)
    path = write(
        tmp_path / "x.mov", Track("libx264", video_frames(0, 50)), Track("pcm_f32le", frames)
    )
    waveform, _ = AudioReader(probe(str(path))).read(0.0, 1.8)
    assert np.sqrt(2 * np.mean(waveform**2)) == pytest.approx(0.3, abs=0.01)


def test_unknown_layouts_are_averaged() -> None:
    assert weights_of(("NONE",) * 4).tolist() == [0.25] * 4
    assert weights_of(("FL", "FR", "FC", "LFE", "SL", "SR"))[3] == 0


def test_a_rate_and_a_layout_that_change_within_a_file(tmp_path: Path) -> None:
    """A transport stream from film to advertisement: 48 kHz stereo, then 32 kHz mono."""
    joined = tmp_path / "joined.ts"
    with joined.open("wb") as file:
        for part, (rate, layout) in enumerate(((48000, "stereo"), (32000, "mono"))):
            wave = np.tile(sweep(2 * part, 2, rate), (1 + (layout == "stereo"), 1))
            audio = Track("mp2", audio_frames(wave, rate, layout, start=2 * part))
            video = Track("libx264", video_frames(50 * part, 50, start=2 * part), {"bf": "0"})
            path = write(tmp_path / f"{part}.ts", video, audio, format="mpegts")
            file.write(path.read_bytes())
    info = probe(str(joined))
    reader = AudioReader(info)
    waveform, _ = reader.read(0.0, 4.0)
    assert np.abs(pitch_times(waveform)).max() < 0.08
    assert np.sqrt(2 * np.mean(waveform[4000:-4000] ** 2)) == pytest.approx(0.3, abs=0.02)
    assert reader.mixdown == ("stereo: mean", "mono")


def test_frames_that_change_their_size_keep_their_shape(tmp_path: Path) -> None:
    joined = tmp_path / "joined.ts"
    with joined.open("wb") as file:
        for part, size in enumerate(((96, 64), (64, 96))):
            video = Track("libx264", video_frames(50 * part, 50, start=2 * part, size=size), X264)
            audio = Track("mp2", audio_frames(sweep(2 * part, 2), start=2 * part))
            file.write(write(tmp_path / f"{part}.ts", video, audio, format="mpegts").read_bytes())
    info = probe(str(joined))
    shape = geometry(info, 64, "patches")
    frames = open_decoder(info, shape, np.arange(100)).read(list(range(100)))
    inside = fit_inside((96, 64), (64, 96))
    assert inside == (64, 43)
    tall = frames[80]
    assert tall.shape == (64, 96, 3)
    assert not tall[:, :25].any() and not tall[:, -25:].any()
    assert read_number(tall[:, 26:70]) == 80
    assert read_number(frames[20]) == 20


@pytest.mark.parametrize("diagonal", [True, False])
@pytest.mark.parametrize("signs", itertools.product((1, -1), (1, -1)))
def test_orientation_is_that_of_a_player(diagonal: bool, signs: tuple[int, int]) -> None:
    """The display matrix maps every point of the frame."""
    a, b, c, d = (signs[0], 0, 0, signs[1]) if diagonal else (0, signs[0], signs[1], 0)
    frame = np.random.default_rng(0).integers(0, 255, (5, 5, 3), dtype=np.uint8)
    placed = np.zeros_like(frame)
    for y, x in itertools.product(range(-2, 3), range(-2, 3)):
        placed[b * x + d * y + 2, a * x + c * y + 2] = frame[y + 2, x + 2]
    unit = 1 << 16
    matrix = struct.pack("=9i", a * unit, b * unit, 0, c * unit, d * unit, 0, 0, 0, 1 << 30)
    rotation, mirrored = orientation(matrix)
    shape = Geometry((5, 5), rotation, (5, 5), mirrored)
    np.testing.assert_array_equal(shape.finish(frame), placed)


def test_a_front_camera_mirrors(tmp_path: Path) -> None:
    path = write(
        tmp_path / "x.mp4",
        Track("libx264", video_frames(0, 25)),
        Track("aac", audio_frames(sweep(0, 1))),
    )
    data = bytearray(path.read_bytes())
    place = data.find(b"tkhd") + 44
    unit = 1 << 16
    data[place : place + 36] = struct.pack(">9i", -unit, 0, 0, 0, unit, 0, 96 << 16, 0, 1 << 30)
    path.write_bytes(data)
    info = probe(str(path))
    assert (info.rotation, info.mirrored) == (0, True)
    shape = geometry(info, 64, "patches")
    frame = open_decoder(info, shape, np.arange(25)).read([3])[3]
    assert read_number(np.ascontiguousarray(frame[:, ::-1])) == 3
    mask = np.zeros((64, 96), np.uint8)
    mask[:, :20] = 1
    np.testing.assert_array_equal(shape.mask(Image.fromarray(mask), (64, 96)), mask)


def test_hdr_is_mapped_to_sdr() -> None:
    grey = np.array([0.0, 0.1, 0.58, 0.75, 1.0])  # PQ: 0.58 is SDR's white
    frame = np.repeat(np.rint(grey * 65535).astype(np.uint16)[None, :, None], 3, axis=2)
    mapped = to_sdr(frame, "pq")
    assert (mapped.max(-1) - mapped.min(-1)).max() <= 1  # grey stays grey
    levels = mapped[0, :, 0].astype(int).tolist()
    assert levels == sorted(levels)
    assert levels[0] == 0 and 215 < levels[2] < 245 and levels[4] == 255
    hlg = to_sdr(frame, "hlg")[0, :, 0].astype(int).tolist()
    assert hlg == sorted(hlg) and hlg[0] == 0 and 215 < hlg[3] < 245


def test_an_hdr_video_says_so(tmp_path: Path) -> None:
    path = tmp_path / "x.mkv"
    options = {
        "x265-params": "log-level=none:colorprim=bt2020:transfer=smpte2084:colormatrix=bt2020nc"
    }
    write(
        path,
        Track("libx265", video_frames(0, 25), options),
        Track("pcm_s16le", audio_frames(sweep(0, 1))),
    )
    info = probe(str(path))
    assert info.transfer == "pq"
    frame = open_decoder(info, geometry(info, 64, "square"), np.arange(25)).read([3])[3]
    assert read_number(frame) == 3


@pytest.mark.parametrize("name", ["x.mkv", "x.mp4", "x.avi", "x.flv"])
@pytest.mark.parametrize("title", [b"Caf\xe9", "会議".encode("shift_jis")])
def test_titles_in_any_encoding(tmp_path: Path, name: str, title: bytes) -> None:
    codec = "mpeg4" if name == "x.avi" else "libx264"
    tracks = (
        Track(codec, video_frames(0, 25)),
        Track("aac", audio_frames(sweep(0, 1, 44100), 44100)),
    )
    mark = b"a title of one size"
    path = tmp_path / name
    with av.open(str(path), "w") as container:
        container.metadata["title"] = mark.decode()
        for packet in by_time([list(packets_of(container, track)) for track in tracks]):
            container.mux(packet)
    data = path.read_bytes()
    assert mark in data
    path.write_bytes(data.replace(mark, title.ljust(len(mark))))
    assert len(probe(str(path)).frame_times) == 25


def test_only_regular_files_in_real_containers_are_opened(tmp_path: Path) -> None:
    def reason(path: Path) -> str:
        with pytest.raises(MediaError) as caught:
            probe(str(path))
        return caught.value.reason

    pipe = tmp_path / "pipe.mp4"
    os.mkfifo(pipe)
    assert reason(pipe) == "unreadable"  # and does not wait for a writer
    assert reason(Path("/dev/zero")) == "unreadable"
    tracks = Track("libx264", video_frames(0, 50)), Track("pcm_s16le", audio_frames(sweep(0, 2)))
    secret = write(tmp_path / "secret.mkv", *tracks)
    lists = {
        "hls.m3u8": f"#EXTM3U\n#EXTINF:2,\n{secret.name}\n#EXT-X-ENDLIST\n",
        "concat.mp4": f"ffconcat version 1.0\nfile {secret.name}\n",
        "concat.ffconcat": f"ffconcat version 1.0\nfile {secret.name}\n",
        "dash.mpd": "<?xml version='1.0'?><MPD xmlns='urn:mpeg:dash:schema:mpd:2011'></MPD>",
        "text.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nm=video 5004 RTP/AVP 96\n",
    }  # fmt: skip
    for name, text in lists.items():
        (tmp_path / name).write_text(text)
        assert reason(tmp_path / name) == "decode_error", name
