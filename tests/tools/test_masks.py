"""Masks as tools write them, from the PNGs to the clips for mixtures."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cavmae.datasets.format import sample
from cavmae.datasets.format.manifest import Manifest
from cavmae.datasets.format.sample import SampleInfo
from cavmae.datasets.media import MediaError
from cavmae.datasets.mixtures.clip_pool import ClipPool
from cavmae.datasets.sharding.masks import label_values, mask_value_names
from cavmae.tools.check import CheckSettings
from cavmae.tools.checking.verify import check
from tests.conftest import make_shards
from tests.tools.helpers import TINY, Maker, load

FRAMES = 25  # of the videos here
SHAPE = np.zeros((64, 96), bool)
SHAPE[8:56, 24:72] = True


def mask_image(values: dict[int, tuple[int, int]], mode: str = "L") -> Image.Image:
    """A mask with a value in some rows of the shape."""
    pixels = np.zeros(SHAPE.shape, np.uint8)
    for value, (first, last) in values.items():
        pixels[first:last] = value
    pixels[~SHAPE] = 0
    image = Image.fromarray(pixels)
    if mode == "1":
        return image.point(lambda v: 255 * (v > 0)).convert("1")
    if mode == "P":
        image = Image.fromarray(np.minimum(pixels, 1))
        image.putpalette([0, 0, 0, 255, 255, 255])
    return image


WHITE = {255: (0, 64)}


def table(tmp_path: Path, rows: list[str]) -> str:
    path = tmp_path / "t.csv"
    path.write_text("path,speaker,masks\n" + "".join(f"a.mp4,{r},masks/{r}\n" for r in rows))
    return str(path)


def test_plain_foreground_masks_are_bodies_all_the_way(tmp_path: Path, video: Maker) -> None:
    video("a.mp4", seconds=1.0)
    kinds = {
        "white": mask_image(WHITE), "bits": mask_image(WHITE, "1"),
        "palette": mask_image({1: (0, 64)}, "P"), "labels": mask_image({1: (0, 40), 2: (40, 64)}),
    }  # fmt: skip
    for kind, image in kinds.items():
        (tmp_path / "masks" / kind).mkdir(parents=True)
        for number in range(FRAMES):
            # A person who is out of view has an empty mask.
            mask = mask_image({}) if number == 3 else image
            mask.save(tmp_path / "masks" / kind / f"{number:04d}.png")
    out = tmp_path / "out"
    assert make_shards(table(tmp_path, list(kinds)), out, **TINY) == 0
    body, face = {"1": "person 1 body"}, {"2": "person 1 face"}
    for members in load(out).values():
        info = SampleInfo.from_bytes(members["json"])
        assert info.mask_values == (body | face if info.speaker == "labels" else body)
        assert info.masked_frames == tuple(range(FRAMES))
        mask = sample.decode_mask(members["000.png"], info.frame_size)
        assert set(np.unique(mask)) == ({0, 1, 2} if info.speaker == "labels" else {0, 1})
        assert not sample.decode_mask(members["003.png"], info.frame_size).any()
    assert check(str(out), CheckSettings(workers=1, sheet=0)) == 0
    pool = ClipPool(Manifest.load(out))
    assert sorted(clip.person for clip in pool.clips) == sorted(kinds)
    for clip in pool.clips:
        assert ((pool.masks(clip, [0])[0] > 0) == SHAPE).all()
    pool.close()


def jpeg(path: Path) -> None:
    mask_image(WHITE).save(path, "JPEG")


def colours(path: Path) -> None:
    mask_image(WHITE).convert("RGB").save(path)


def huge(path: Path) -> None:
    mask_image(WHITE).save(path)
    os.truncate(path, 40 << 20)


def twice(path: Path) -> None:
    for name in ("0000.png", "0.png"):
        mask_image(WHITE).save(path.with_name(name))


BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "void": (lambda path: mask_image({1: (0, 40), 255: (40, 64)}).save(path), "the value 255"),
    "grey": (lambda path: mask_image({90: (0, 30), 128: (30, 64)}).save(path), "the value 128"),
    "jpeg": (jpeg, "is not a PNG"),
    "colours": (colours, "is RGB, not labels"),
    "pipe": (os.mkfifo, "no regular file"),
    "huge": (huge, "more than 32 MB"),
    "twice": (twice, "of one frame"),
}


def test_masks_that_are_none_are_named(tmp_path: Path, video: Maker) -> None:
    video("a.mp4", seconds=1.0)
    for kind, (make, _) in BAD.items():
        (tmp_path / "masks" / kind).mkdir(parents=True)
        make(tmp_path / "masks" / kind / "0000.png")
    assert make_shards(table(tmp_path, list(BAD)), tmp_path / "out", **TINY) == 1
    lines = (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()
    records = {Path(r["retry"]["masks"]).name: r for r in map(json.loads, lines)}
    assert set(records) == set(BAD)
    for kind, (_, words) in BAD.items():
        assert records[kind]["reason"] == "bad_mask"
        assert words in records[kind]["detail"]


@pytest.mark.parametrize("value", [64, 65])
def test_values_have_a_limit(value: int) -> None:
    masks = {0: np.array([[0, value]], np.uint8)}
    if value == 64:
        assert label_values(masks) is masks
        assert mask_value_names({value}) == {"64": "person 32 face"}
    else:
        with pytest.raises(MediaError, match="the value 65"):
            label_values(masks)
