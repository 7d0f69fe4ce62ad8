import random

import numpy as np
import pytest
import torch

from cavmae.common.errors import UsageError
from cavmae.datasets.format import sample
from cavmae.datasets.format.sample import SampleInfo
from cavmae.datasets.stream.collate import Collate
from cavmae.datasets.stream.features import SILENCE
from cavmae.datasets.stream.view import View

SECONDS, RATE = 5.12, 25
SIZE = (32, 64)


def members(
    seconds: float = SECONDS, rate: float = RATE, masks: bool = True
) -> tuple[dict[str, bytes], SampleInfo]:
    """A clip whose frame k is grey 2 k, whose fbank row t is t / 100, whose sample n is n / 4."""
    count = round(seconds * rate)
    samples = round(seconds * 16000)
    rows = 1 + (samples - 400) // 160
    info = SampleInfo(
        source="x.mp4", start=0.0, duration=seconds, labels=("a",), speaker=None,
        frame_times=tuple(i / rate for i in range(count)), frame_size=SIZE, fbank_frames=rows,
        mask_values={"1": "person 1 body"} if masks else None,
        masked_frames=tuple(range(0, count, 2)) if masks else (),
    )  # fmt: skip
    data = {
        "json": info.to_bytes(),
        "fbank.npy": sample.encode_fbank(np.tile(np.arange(rows)[:, None] / 100, (1, 128))),
        "flac": sample.encode_waveform((np.arange(samples) // 4).astype(np.int16)),
    }
    for i in range(count):
        grey = np.full((*SIZE, 3), 2 * i % 256, dtype=np.uint8)
        data[sample.frame_member(i)] = sample.encode_frame(grey, 95)
        if masks and i % 2 == 0:
            data[sample.mask_member(i)] = sample.encode_mask(np.ones(SIZE, np.uint8))
    return data, info


CLIP = members()


def load(view: View, seed: int = 0, clip: tuple[dict[str, bytes], SampleInfo] = CLIP) -> dict:  # type: ignore[type-arg]
    data, info = clip
    choice = view.select(list(data), info, random.Random(seed))
    arrays = choice.decode({name: data[name] for name in choice.members})
    batch = Collate(view)([{"key": "k", **arrays}])
    return {k: v[0].numpy() if isinstance(v, torch.Tensor) else v for k, v in batch.items()}


def greys(loaded: dict) -> list[int]:  # type: ignore[type-arg]
    return [round(float(f.mean()) / 2) for f in loaded["frames"]]


@pytest.mark.parametrize("seed", range(8))
def test_a_window_gives_audio_and_frames_of_exactly_that_part(seed: int) -> None:
    loaded = load(View(window=2.56, frames="all", waveform=True, masks=True), seed)
    first = greys(loaded)[0]
    assert greys(loaded) == list(range(first, first + 64))
    start = first / RATE
    np.testing.assert_allclose(loaded["frame_times"], np.arange(64) / RATE, atol=1e-5)
    real = loaded["fbank_length"]
    assert real == min(256, 510 - round(start * 100))
    np.testing.assert_allclose(
        loaded["fbank"][:real, 0], (start * 100 + np.arange(real)) / 100, atol=4e-3
    )
    assert loaded["waveform"].shape == (40960,)
    assert loaded["waveform"][0] == round(start * 16000) // 4
    assert loaded["masked"].tolist() == [i % 2 == 0 for i in range(first, first + 64)]
    assert (loaded["masks"].max((1, 2)) == loaded["masked"]).all()


def test_windows_begin_everywhere_but_in_evaluation_in_the_middle() -> None:
    view = View(window=2.56, frames="all")
    firsts = {greys(load(view, seed))[0] for seed in range(60)}
    assert min(firsts) < 10
    assert max(firsts) > 54
    fixed = View(window=2.56, frames="all", random_window=False)
    assert {greys(load(fixed, seed))[0] for seed in range(5)} == {32}


@pytest.mark.parametrize("rate", [12.5, 25.0, 29.97, 50.0])
def test_frames_of_a_window_are_the_nearest_in_time(rate: float) -> None:
    clip = members(rate=rate, masks=False)
    loaded = load(View(window=2.56, frames="all"), 3, clip)
    grid = np.arange(64) / 25
    assert np.abs(loaded["frame_times"] - grid).max() <= 0.5 / rate + 1e-3


@pytest.mark.parametrize("frames", [8, "random", "all"])
@pytest.mark.parametrize("rate", [1.0, 5.0])
def test_a_window_of_a_slow_video_gives_no_frame_of_another_time(
    rate: float, frames: int | str
) -> None:
    clip = members(seconds=10.0, rate=rate, masks=False)
    for seed in range(20):
        loaded = load(View(window=2.56, frames=frames), seed, clip)  # type: ignore[arg-type]
        assert loaded["frame_times"].min() >= -0.021
        assert loaded["frame_times"].max() < 2.56


def test_a_clip_shorter_than_the_window_is_padded() -> None:
    clip = members(seconds=2.0, masks=False)
    loaded = load(View(window=2.56, frames=8, waveform=True, padding="silence"), 0, clip)
    assert loaded["fbank"].shape == (256, 128)
    assert loaded["fbank_length"] == 198
    assert loaded["fbank"][198:] == pytest.approx(SILENCE, abs=0.01)
    assert loaded["waveform"].shape == (40960,)
    assert loaded["waveform_length"] == 32000
    assert (loaded["waveform"][32000:] == 0).all()
    assert len(loaded["frames"]) == 8


def test_whole_clips_are_padded_with_zeros_or_cut() -> None:
    loaded = load(View(fbank_frames=1024, frames="none"))
    assert loaded["fbank"].shape == (1024, 128)
    assert loaded["fbank_length"] == 510
    assert (loaded["fbank"][510:] == 0).all()
    assert "frames" not in loaded
    assert load(View(fbank_frames=100))["fbank_length"] == 100


def test_numbers_of_frames() -> None:
    assert len(load(View(frames="all"))["frames"]) == 128
    assert greys(load(View(frames="middle"))) == [64]
    assert greys(load(View(frames=4))) == [16, 48, 80, 112]
    assert len({greys(load(View(frames="random"), seed))[0] for seed in range(40)}) > 20


def test_only_selected_members_are_read() -> None:
    data, info = CLIP
    choice = View(frames=2).select(list(data), info, random.Random(0))
    assert set(choice.members) == {"json", "fbank.npy", "032.jpg", "096.jpg"}
    choice = View(fbank=False, frames="middle", masks=True, waveform=True).select(
        list(data), info, random.Random(0)
    )
    assert set(choice.members) == {"json", "flac", "064.jpg", "064.png"}


@pytest.mark.parametrize("size", [(16, 32), (24, 24), (48, 40), (32, 64)])
def test_frames_are_scaled_and_cropped_without_distortion(size: tuple[int, int]) -> None:
    data, info = members(masks=False)
    y, x = np.mgrid[0:32, 0:64]
    ramp = np.stack([x * 4, y * 8, np.full_like(x, 100)], axis=-1).astype(np.uint8)
    data["064.jpg"] = sample.encode_frame(ramp, 98)
    frame = load(View(frames="middle", frame_size=size), 0, (data, info))["frames"][0]
    assert frame.shape == (*size, 3)
    scale = max(size[0] / 32, size[1] / 64)
    across = np.diff(frame[size[0] // 2, 4:-4, 0].astype(float)).mean()
    down = np.diff(frame[4:-4, size[1] // 2, 1].astype(float)).mean()
    assert across == pytest.approx(4 / scale, rel=0.12)
    assert down == pytest.approx(8 / scale, rel=0.12)


@pytest.mark.parametrize(
    "options", [{"frames": 0}, {"window": 2.55}, {"masks": True, "frames": "none"}]
)
def test_views_with_bad_options(options: dict) -> None:  # type: ignore[type-arg]
    with pytest.raises(UsageError):
        View(**options)
