"""Video files that are written in a thread of their own."""

import threading
from pathlib import Path

import av
import numpy as np
import pytest

from cavmae.datasets.media.writing import ThreadedVideoWriter, VideoWriter, _mask_frame

AUDIO = (np.sin(np.arange(32_000) / 20) * 8000).astype(np.int16)


def frames(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 255, (64, 96, 3), dtype=np.uint8) for _ in range(count)]


def test_a_thread_writes_the_same_bytes(tmp_path: Path) -> None:
    pictures = frames(30)
    writer = VideoWriter(tmp_path / "a.mp4", (96, 64), 25, 23.0, AUDIO, "superfast")
    for number, picture in enumerate(pictures):
        writer.write(number, picture)
    writer.close()
    with ThreadedVideoWriter(
        VideoWriter(tmp_path / "b.mp4", (96, 64), 25, 23.0, AUDIO, "superfast")
    ) as other:
        for number, picture in enumerate(pictures):
            other.write(number, picture)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


@pytest.mark.parametrize("count", [2, 40])  # fewer than are queued, and more
def test_an_error_of_the_encoder_reaches_the_caller(count: int, tmp_path: Path) -> None:
    pictures = frames(count)
    with (
        pytest.raises(KeyError, match="5"),
        ThreadedVideoWriter(
            VideoWriter(tmp_path / "a.mp4", (96, 64), 25, 23.0, None, "ultrafast")
        ) as writer,
    ):
        writer.write(0, np.zeros((64, 96, 5), np.uint8))  # no such format
        for number, picture in enumerate(pictures, 1):
            writer.write(number, picture)
    assert not [t for t in threading.enumerate() if t.name.startswith("video encoder")]


def test_an_error_of_the_caller_ends_the_thread(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="of the caller"),
        ThreadedVideoWriter(
            VideoWriter(tmp_path / "a.mp4", (96, 64), 25, 23.0, AUDIO, "ultrafast")
        ) as writer,
    ):
        writer.write(0, frames(1)[0])
        raise ValueError("of the caller")
    assert not [t for t in threading.enumerate() if t.name.startswith("video encoder")]


@pytest.mark.parametrize("size", [(16, 16), (34, 98), (180, 320)])  # rows with padding, too
def test_frames_of_masks_are_those_of_ffmpeg(size: tuple[int, int]) -> None:
    mask = np.random.default_rng(0).random(size) < 0.5
    own = _mask_frame(mask)
    grey = mask * np.uint8(255)
    other = av.VideoFrame.from_ndarray(grey, "gray").reformat(format="yuv420p")
    np.testing.assert_array_equal(own.to_ndarray(), other.to_ndarray())


def test_grey_frames_are_refused() -> None:
    with pytest.raises(ValueError, match="a mask is uint8, not bool"):
        _mask_frame(np.full((16, 16), 255, np.uint8))


@pytest.mark.parametrize("b_frames", [False, True])
def test_frames_come_in_the_order_of_time_without_b_frames(b_frames: bool, tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    y, x = np.mgrid[:64, :96]
    with VideoWriter(path, (96, 64), 25, 23.0, None, "superfast", b_frames) as writer:
        for number in range(30):
            picture = np.stack([(x + 2 * number) % 256, y, x], axis=-1).astype(np.uint8)
            writer.write(number, picture)
    with av.open(str(path)) as container:
        stamps = [packet.pts for packet in container.demux(video=0) if packet.pts is not None]
    assert len(stamps) == 30
    assert (stamps == sorted(stamps)) != b_frames


@pytest.mark.parametrize("seed", range(3))
def test_masks_survive_the_fastest_preset(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:180, :320]
    masks = []
    for _ in range(25):
        center, radius = rng.uniform(60, 120, 2), rng.uniform(5, 60)
        masks.append(np.hypot(y - center[0], x - center[1]) < radius)
    path = tmp_path / "mask.mp4"
    with ThreadedVideoWriter(VideoWriter(path, (320, 180), 25, 20.0, None, "ultrafast")) as writer:
        for number, mask in enumerate(masks):
            writer.write(number, mask)
    with av.open(str(path)) as container:
        decoded = [f.to_ndarray(format="gray") for f in container.decode(video=0)]
    for mask, seen in zip(masks, decoded, strict=True):
        np.testing.assert_array_equal(seen > 127, mask)
