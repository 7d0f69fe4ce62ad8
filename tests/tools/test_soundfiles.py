"""Audio files with misleading headers or suffixes."""

import os
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile

from cavmae.datasets.media.audio_files import MAGIC, AudioFileError, read_audio
from cavmae.datasets.synthetic.recordings import inspect_recording, list_recordings

KINDS = ("WAV", "FLAC")
WAVE = (np.sin(np.arange(32_000) * 0.2) * 0.3).astype(np.float32)


@pytest.mark.parametrize("ending", ["wav", "flac", "ogg", "mp3"])
def test_kinds_that_recordings_come_in(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    soundfile.write(str(path), WAVE, 16_000)
    samples, rate = read_audio(path, MAGIC)
    assert rate == 16_000
    assert samples.shape == (pytest.approx(32_000, abs=2500), 1)
    part, _ = read_audio(path, MAGIC, 0.5, 0.25)
    assert part.shape == (4000, 1)
    assert 0.1 < np.abs(part[:, 0]).max() < 0.4


def test_other_kinds_are_refused_whatever_their_suffix(tmp_path: Path) -> None:
    for kind in ("AIFF", "AU", "CAF"):
        path = tmp_path / "a.wav"
        soundfile.write(str(path), WAVE, 16_000, format=kind)
        with pytest.raises(AudioFileError, match=r"a\.wav is not WAV or FLAC"):
            read_audio(path, KINDS)


def test_a_header_that_promises_days_costs_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    soundfile.write(str(path), WAVE, 16_000)
    data = bytearray(path.read_bytes())
    data[21] |= 0x0F  # the 36 bits of STREAMINFO's number of samples
    data[22:26] = b"\xff" * 4
    path.write_bytes(data)
    assert soundfile.info(str(path)).frames > 1 << 35
    with pytest.raises(AudioFileError, match=r"a\.flac does not decode"):
        read_audio(path, KINDS)
    samples, _ = read_audio(path, KINDS, 0.0, 1.0)  # a part that the file does hold
    assert len(samples) == 16_000


def test_rates_and_channels_out_of_reason(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(str(path), WAVE, 16_000)
    data = bytearray(path.read_bytes())
    for place, value in ((24, struct.pack("<I", 2**31 - 1)), (22, struct.pack("<H", 1000))):
        path.write_bytes(data[:place] + value + data[place + len(value) :])
        with pytest.raises(AudioFileError, match=r"a\.wav"):
            read_audio(path, KINDS)


def test_samples_that_are_not_numbers(tmp_path: Path) -> None:
    wave = WAVE.copy()
    wave[100] = np.nan
    soundfile.write(str(tmp_path / "a.wav"), wave, 16_000, subtype="FLOAT")
    with pytest.raises(AudioFileError, match="not numbers"):
        read_audio(tmp_path / "a.wav", KINDS)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x-pipe.wav")
    with pytest.raises(AudioFileError, match="no file"):
        read_audio(tmp_path / "x-pipe.wav", KINDS)


def test_folders_of_recordings_may_be_linked(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    soundfile.write(str(tmp_path / "far" / "anna-1.wav"), WAVE, 16_000)
    speech = tmp_path / "speech"
    speech.mkdir()
    (speech / "more").symlink_to("../far")
    (speech / "again").symlink_to("../far")
    os.mkfifo(speech / "x-pipe.wav")
    found = dict(reversed(pair) for pair in list_recordings(speech))
    assert found == {"again/anna-1.wav": "anna", "x-pipe.wav": "x"}
    assert inspect_recording(speech, "x-pipe.wav")[0] == "decode_error"  # a line in skipped.jsonl


def test_names_that_are_not_utf_8(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.wav")
    soundfile.write(os.fsencode(path), WAVE, 16_000)
    assert len(read_audio(path, KINDS)[0]) == 32_000
