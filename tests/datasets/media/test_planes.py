"""Frames as planes of YUV, which are encoded without a way through RGB."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from cavmae.datasets.media import probe
from cavmae.datasets.media.geometry import cut_from
from cavmae.datasets.media.planes import PACKED, pack_rgb, planes_of, yuv_of
from cavmae.datasets.media.playback import Playback
from cavmae.datasets.media.writing import VideoWriter

Maker = Callable[..., Path]


def to_rgb(packed: np.ndarray) -> np.ndarray:
    """As a player shows it, int [height, width, 3]."""
    frame = av.VideoFrame.from_ndarray(packed, PACKED)
    return frame.reformat(format="rgb24").to_ndarray().astype(int)


def test_colors_are_those_of_ffmpeg() -> None:
    for color in np.random.default_rng(0).integers(0, 256, (50, 3), dtype=np.uint8):
        luma, chroma = planes_of(pack_rgb(np.broadcast_to(color, (16, 32, 3))))
        expected = [luma[0, 0], *chroma[0, :2]]
        assert (np.ptp(luma), np.ptp(chroma.reshape(-1, 2), axis=0).max()) == (0, 0)
        assert np.abs(yuv_of(color).astype(int) - expected).max() <= 1


def test_planes_are_views() -> None:
    packed = np.random.default_rng(0).integers(0, 256, (24, 20), dtype=np.uint8)
    luma, chroma = planes_of(packed)
    assert luma.shape == (16, 20) and chroma.shape == (8, 20)
    assert np.shares_memory(luma, packed) and np.shares_memory(chroma, packed)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"codec_options": (("colorspace", "bt709"),)},
        {"pixel_format": "yuvj420p"},  # full range
        {"pixel_format": "yuv444p"},
        {"pixel_format": "yuv420p10le"},
        {"rotation": 90},
        {"video_start": 0.2},  # black before it
    ],
    ids=lambda changes: "-".join(map(str, changes)) or "plain",
)
@pytest.mark.parametrize("size", [(240, 320), (120, 160)])
def test_packed_frames_show_what_rgb_ones_do(
    video: Maker, size: tuple[int, int], changes: dict[str, Any]
) -> None:
    info = probe(str(video(size=(320, 240), seconds=0.4, **changes)))
    if "rotation" in changes:
        size = size[::-1]
    geometry = cut_from(info, size, size)
    with Playback(info, geometry) as rgb, Playback(info, geometry, packed=True) as packed:
        frames = zip(rgb.read_frames(0, 8), packed.read_frames(0, 8), strict=True)
        for expected, frame in frames:
            assert frame.shape == (size[0] * 3 // 2, size[1]) and frame.dtype == np.uint8
            assert frame.flags.c_contiguous
            difference = to_rgb(frame) - expected
            assert np.abs(difference.mean((0, 1))).max() < 4
            assert np.abs(difference).mean() < 4


def test_packed_frames_are_written_as_rgb_ones(tmp_path: Path) -> None:
    y, x = np.mgrid[:64, :96]
    pictures = [
        np.stack([(2 * x + 3 * t) % 256, (3 * y) % 256, x + y], axis=-1).astype(np.uint8)
        for t in range(10)
    ]
    decoded = []
    for name, frames in (("rgb", pictures), ("packed", [pack_rgb(p) for p in pictures])):
        path = tmp_path / f"{name}.mp4"
        with VideoWriter(path, (96, 64), 25, 10.0, None, "superfast") as writer:
            for number, frame in enumerate(frames):
                writer.write(number, frame)
        with av.open(str(path)) as container:
            assert container.streams.video[0].codec_context.pix_fmt == "yuv420p"
            decoded.append(np.stack([f.to_ndarray() for f in container.decode(video=0)]))
    assert np.abs(decoded[0].astype(int) - decoded[1]).max() <= 2


@pytest.mark.parametrize("quality_as", ["crf", "qp"])
def test_masks_come_back_in_every_pixel(tmp_path: Path, quality_as: Any) -> None:
    y, x = np.mgrid[:96, :160]
    masks = [np.hypot(x - 40 - 3 * t, y - 50) < 20 + t for t in range(20)]
    path = tmp_path / "mask.mp4"
    with VideoWriter(path, (160, 96), 25, 20.0, None, "ultrafast", quality_as=quality_as) as writer:
        for number, mask in enumerate(masks):
            writer.write(number, mask)
    with av.open(str(path)) as container:
        for frame, mask in zip(container.decode(video=0), masks, strict=True):
            np.testing.assert_array_equal(frame.to_ndarray(format="gray") > 127, mask)
