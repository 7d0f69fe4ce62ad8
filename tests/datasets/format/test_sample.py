import io
import json
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cavmae.common.errors import SampleError
from cavmae.datasets.format import sample
from cavmae.datasets.format.sample import SampleInfo

INFO = SampleInfo(
    source="a folder/näme\n.mp4",
    start=1.5,
    duration=2.0,
    labels=("speech", "a, b"),
    speaker="s1",
    frame_times=(0.0, 0.04),
    frame_size=(32, 48),
    fbank_frames=198,
    mask_values={"1": "person 1 body"},
    decoder="pyav",
    audio_span=(0.0, 2.0),
    masked_frames=(1,),
)


def test_info_round_trip() -> None:
    assert SampleInfo.from_bytes(INFO.to_bytes()) == INFO
    assert json.loads(INFO.to_bytes())["schema"] == 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"schema": 2}, "unknown_schema"),
        ({"duration": -1}, "bad_json"),
        ({"duration": 1e9}, "bad_json"),
        ({"frame_size": [0, 10]}, "bad_json"),
        ({"frame_size": [10**6, 10**6]}, "bad_json"),
        ({"frame_times": [1.0, 0.0]}, "bad_json"),
        ({"frame_times": "x"}, "bad_json"),
        ({"sample_rate": 44100}, "bad_json"),
        ({"labels": "speech"}, "bad_json"),
        ({"fbank_frames": True}, "bad_json"),
        ({"source": None}, "bad_json"),
        ({"frame_size": [float("inf"), 1]}, "bad_json"),
        ({"start": 10**400}, "bad_json"),
        ({"missing_frames": float("inf")}, "bad_json"),
        # Comparisons with NaN are false, so limits do not see it.
        ({"frame_times": [0.0, float("nan"), 0.04]}, "bad_json"),
        ({"frame_times": [True, 2]}, "bad_json"),
        ({"start": float("nan")}, "bad_json"),
        ({"duration": float("nan")}, "bad_json"),
        ({"audio_span": [float("nan"), 1.0]}, "bad_json"),
        ({"audio_span": [1.0]}, "bad_json"),
        ({"frame_size": [10.5, 10]}, "bad_json"),
        ({"labels": [1]}, "bad_json"),
        ({"mask_values": {"1": 2}}, "bad_json"),
        ({"masked_frames": ["0"]}, "bad_json"),
        ({"missing_frames": -1}, "bad_json"),
    ],
)
def test_info_rejects(change: dict[str, object], reason: str) -> None:
    record = {**json.loads(INFO.to_bytes()), **change}
    with pytest.raises(SampleError) as caught:
        SampleInfo.from_bytes(json.dumps(record).encode())
    assert caught.value.reason == reason


@given(st.binary(max_size=300))
def test_random_bytes_are_sample_errors_and_nothing_else(data: bytes) -> None:
    for decode in (
        SampleInfo.from_bytes,
        lambda d: sample.decode_fbank(d, 1),
        sample.decode_frame,
        lambda d: sample.decode_mask(d, (1, 1)),
        sample.decode_waveform,
    ):
        with pytest.raises(SampleError):
            decode(data)


@given(st.integers(0, 50), st.integers(0, 2**32 - 1))
def test_fbank_round_trip(frames: int, seed: int) -> None:
    fbank = np.random.default_rng(seed).normal(-5, 4, (frames, 128)).astype(np.float16)
    data = sample.encode_fbank(fbank)
    np.testing.assert_array_equal(np.load(io.BytesIO(data), allow_pickle=False), fbank)
    np.testing.assert_array_equal(sample.decode_fbank(data, frames), fbank)


def test_fbank_rejects_pickles_and_other_shapes() -> None:
    evil = io.BytesIO()
    np.save(evil, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    good = sample.encode_fbank(np.zeros((10, 128)))
    for data in (
        evil.getvalue(),
        pickle.dumps([1, 2]),
        sample.encode_fbank(np.zeros((10, 64))),
        good[:-1],
        good + b"x",
        good.replace(b"<f2", b"<f4"),
    ):
        with pytest.raises(SampleError, match="bad_fbank"):
            sample.decode_fbank(data, 10)
    with pytest.raises(SampleError, match="bad_fbank"):
        sample.decode_fbank(good, 11)


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
def test_fbank_holds_finite_numbers(value: float) -> None:
    fbank = np.full((10, 128), np.finfo(np.float16).max)
    np.testing.assert_array_equal(sample.decode_fbank(sample.encode_fbank(fbank), 10), fbank)
    fbank[7, 100] = value
    with pytest.raises(SampleError, match="fbank_not_finite"):
        sample.decode_fbank(sample.encode_fbank(fbank), 10)


def test_frame_round_trip_and_size_check() -> None:
    y, x = np.mgrid[0:64, 0:96]
    frame = np.stack([x * 2, y * 2, x + y], axis=-1).astype(np.uint8)
    data = sample.encode_frame(frame, 90)
    assert np.abs(sample.decode_frame(data, (64, 96)).astype(int) - frame).mean() < 3
    assert sample.decode_frame(data, (64, 96), min_size=(32, 48)).shape == (32, 48, 3)
    assert sample.decode_frame(data, (64, 96), min_size=(33, 48)).shape == (64, 96, 3)
    with pytest.raises(SampleError, match="bad_frame"):
        sample.decode_frame(data, (96, 64))


@pytest.mark.parametrize("mode", ["L", "P"])
def test_mask_keeps_its_values(mode: str) -> None:
    mask = np.arange(6, dtype=np.uint8).reshape(2, 3)
    buffer = io.BytesIO()
    image = Image.fromarray(mask)
    if mode == "P":
        image = image.copy()
        image.putpalette([9] * 768)
    image.save(buffer, "PNG")
    np.testing.assert_array_equal(sample.decode_mask(buffer.getvalue(), (2, 3)), mask)
    np.testing.assert_array_equal(sample.decode_mask(sample.encode_mask(mask), (2, 3)), mask)


def test_mask_rejects_colours_and_other_sizes() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (3, 2)).save(buffer, "PNG")
    for data in (buffer.getvalue(), sample.encode_mask(np.zeros((3, 3), np.uint8))):
        with pytest.raises(SampleError, match="bad_mask"):
            sample.decode_mask(data, (2, 3))


def test_waveform_round_trip_and_parts() -> None:
    waveform = np.random.default_rng(0).integers(-(2**15), 2**15, 16000).astype(np.int16)
    data = sample.encode_waveform(waveform)
    np.testing.assert_array_equal(sample.decode_waveform(data), waveform)
    np.testing.assert_array_equal(sample.decode_waveform(data, 640, 1000), waveform[640:1640])
    assert len(sample.decode_waveform(data, 15990, 1000)) == 10
    assert len(sample.decode_waveform(data, 99999, 1000)) == 0


@pytest.mark.parametrize(
    "name",
    [
        *("../../x.json", "/etc/x.json", "a.pkl", "a.cls", "a.pyd", "a/b.json", "a.npy", "ä.json"),
        *("a.json.gz", "a.00.jpg", "a.000.gif", "a..json", "", "a b.json", "a.json\n"),
        "k" * 200 + ".json",
    ],
)
def test_member_names_rejected(name: str) -> None:
    with pytest.raises(SampleError, match="bad_member"):
        sample.split_member(name)


def test_member_names_accepted() -> None:
    for extension in ("json", "fbank.npy", "flac", "000.jpg", "012.png", "12345.jpg"):
        assert sample.split_member(f"Key_1-2.{extension}") == ("Key_1-2", extension)
