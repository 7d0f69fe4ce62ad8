"""Masks at every frame, and what is drawn of them."""

import dataclasses
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt
from torch.nn import functional

from cavmae.common.boxes import WHOLE, Box
from cavmae.datasets.media.planes import PACKED, pack_rgb, planes_of, yuv_of
from cavmae.finetune.inference.first_pass import FirstPass, Sighting
from cavmae.finetune.inference.mask_tracks import MaskRegion, MaskTrack
from cavmae.finetune.inference.overlap_add import CrossfadeWeights
from cavmae.finetune.inference.overlay import color_of, draw_people, outline
from cavmae.finetune.inference.records import activity_prob, visible_frames
from cavmae.finetune.inference.shots import interpolate_masks

KEYS = np.array([1, 5])
STARTS, LENGTH = [0, 4, 8], 8
SIZE = (90, 160)


def recording(folder: Path, masks: dict[int, np.ndarray], boxes: dict[int, Box]) -> FirstPass:
    """First pass with the masks of one person by window."""
    sightings = []
    with (folder / "masks.u8").open("wb") as file:
        for window, mask in masks.items():
            sightings.append(
                Sighting(
                    window, 0.9, boxes[window], mask.shape, file.tell(), None, False, 0.0, None
                )
            )
            file.write(mask.tobytes())
            file.write(np.ones(LENGTH, np.float32).tobytes())
    has_video, cuts = np.ones(16, bool), [()] * len(STARTS)
    return FirstPass(folder, 16, 10_240, has_video, STARTS, LENGTH, KEYS, cuts, {1: sightings})


def both_sides(folder: Path, second: Box) -> FirstPass:
    """A window with a cut between its key frames: the person has a sighting on either side."""
    masks = np.zeros((2, 2, 9, 16), np.uint8)
    masks[0, 0, :, :4], masks[1, 1, :, -4:] = 255, 255
    first = recording(folder, {0: masks[0], 1: masks[1]}, {0: WHOLE, 1: second})
    sightings = [dataclasses.replace(s, window=0) for s in first.people[1]]
    return dataclasses.replace(
        first, people={1: sightings}, starts=[0], frames=8, has_video=np.ones(8, bool)
    )


@pytest.mark.parametrize("second", [WHOLE, (0.5, 0.0, 1.0, 1.0)])
def test_a_person_on_both_sides_of_a_cut(tmp_path: Path, second: Box) -> None:
    """On the left of the frame and then on its right, there in the box of a second look."""
    first = both_sides(tmp_path, second)
    track = MaskTrack(first, first.people[1])
    for frame in range(8):
        region = track.at(frame, SIZE)
        if frame == 3:  # half-way between the key frames
            continue
        assert region is not None
        mask = np.zeros(SIZE, dtype=bool)
        mask[region.place] = region.mask
        columns = np.flatnonzero(mask.any(0))
        assert columns.min() == (
            0 if frame < 3 else pytest.approx(120 if second == WHOLE else 140, abs=3)
        )
        assert columns.max() == pytest.approx(39 if frame < 3 else 159, abs=3)
    assert visible_frames(first, first.people[1])[[0, 1, 2, 4, 5, 6, 7]].all()


def test_a_voice_is_active_if_it_is_on_either_side_of_a_cut(tmp_path: Path) -> None:
    first = both_sides(tmp_path, WHOLE)
    data = bytearray((tmp_path / "masks.u8").read_bytes())
    for sighting, value in zip(first.people[1], (0.25, 0.75), strict=True):
        place = sighting.offset + int(np.prod(sighting.shape))
        data[place : place + 4 * LENGTH] = np.full(LENGTH, value, np.float32).tobytes()
    (tmp_path / "masks.u8").write_bytes(data)
    np.testing.assert_allclose(activity_prob(first, first.people[1]), 0.75, atol=1e-3)


def blob(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Soft masks of two key frames, with faint values everywhere."""
    y, x = np.mgrid[: size[0], : size[1]]
    masks = []
    for _ in KEYS:
        cy, cx = rng.uniform(0, size[0]), rng.uniform(0, size[1])
        distance = ((y - cy) / size[0]) ** 2 + ((x - cx) / size[1]) ** 2
        masks.append(np.clip(400 * np.exp(-12 * distance) + rng.uniform(0, 5), 0, 255))
    return np.stack(masks).astype(np.uint8)


def naive(first: FirstPass, frame: int) -> np.ndarray:
    """The weighted sum of whole resized masks: float32 of the frame's size."""
    weights = CrossfadeWeights(STARTS, LENGTH)
    total = np.zeros(SIZE, dtype=np.float32)
    for sighting in first.people[1]:
        offset = frame - STARTS[sighting.window]
        if not 0 <= offset < LENGTH:
            continue
        value = interpolate_masks(first.masks(sighting), np.array([offset]), KEYS)[0]
        left, right = (round(v * SIZE[1]) for v in (sighting.box[0], sighting.box[2]))
        top, bottom = (round(v * SIZE[0]) for v in (sighting.box[1], sighting.box[3]))
        large = functional.interpolate(
            torch.from_numpy(value)[None, None], (bottom - top, right - left), mode="bilinear"
        )[0, 0].numpy()
        total[top:bottom, left:right] += large * weights.of(sighting.window)[offset]
    return total


@pytest.mark.parametrize("seed", range(6))
def test_a_region_holds_what_the_whole_frame_would(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    boxes = {0: WHOLE, 1: (0.25, 0.1, 0.75, 0.9) if seed % 2 else WHOLE, 2: (0.4, 0.0, 1.0, 0.5)}
    windows = [0, 1, 2] if seed % 3 else [0, 2]  # the person may be missing from a window
    masks = {w: blob(rng, (14, 14 + 4 * w)) for w in windows}
    first = recording(tmp_path, masks, boxes)
    track = MaskTrack(first, first.people[1])
    seen = 0
    for frame in range(16):
        expected = naive(first, frame)
        region = track.at(frame, SIZE)
        mask = np.zeros(SIZE, bool)
        if region is not None:
            mask[region.place] = region.mask
            np.testing.assert_allclose(region.values, expected[region.place], atol=1e-5)
        clear = np.abs(expected - 0.5) > 1e-5  # either side of the threshold within rounding
        np.testing.assert_array_equal(mask[clear], (expected > 0.5)[clear])
        seen += region is not None
    assert seen


def test_nobody_where_no_pixel_is_above_the_threshold(tmp_path: Path) -> None:
    first = recording(tmp_path, {0: np.full((2, 14, 14), 100, np.uint8)}, {0: WHOLE})
    assert MaskTrack(first, first.people[1]).at(2, SIZE) is None
    first = recording(tmp_path, {0: np.full((2, 14, 14), 255, np.uint8)}, {0: WHOLE})
    track = MaskTrack(first, first.people[1])
    assert track.at(1, SIZE) is not None
    assert track.at(12, SIZE) is None  # after the window's end


def unpack(packed: np.ndarray) -> np.ndarray:
    """RGB of a packed frame, int [h, w, 3]."""
    frame = av.VideoFrame.from_ndarray(packed, PACKED)
    return frame.reformat(format="rgb24").to_ndarray().astype(int)


def disc(radius: float, center: tuple[float, float]) -> MaskRegion:
    """Soft disc in a region 20 pixels below and 30 right of the corner."""
    y, x = np.mgrid[:80, :100].astype(np.float32)
    distance = np.hypot(x + 30 - center[0], y + 20 - center[1])
    return MaskRegion(20, 30, np.clip(0.5 + (radius - distance) / 10, 0, 1).astype(np.float32))


@pytest.mark.parametrize("line_width", [1, 2, 3, 6, 11])
@pytest.mark.parametrize("radius", [0.5, 2, 4, 20])  # of the hole
def test_an_outline_is_as_wide_in_all_directions(line_width: int, radius: float) -> None:
    """Inside of a disc that the edge of the array cuts off, and around a hole, large or a pixel."""
    y, x = np.mgrid[:100, :120]
    mask = np.hypot(x - 30, y - 50) < 45
    mask &= np.hypot(x - 35, y - 50) >= radius
    line = outline(mask, line_width)
    distance = distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]  # from what is not the mask
    assert not line[~mask].any()
    assert line[mask & (distance <= 0.8 * line_width)].all()
    assert not line[distance > 1.25 * line_width + 0.5].any()
    assert line[30:70, 0].all()  # closed where the array ends


def test_people_are_drawn_in_their_colors_and_speakers_are_tinted() -> None:
    grey = np.full((120, 160, 3), 100, np.uint8)
    frame = pack_rgb(grey)
    before = frame.copy()
    regions = {1: disc(25.0, (80.0, 60.0))}
    silent, speaking = (unpack(draw_people(frame, regions, numbers)) for numbers in ((), {1}))
    assert (frame == before).all()  # the input is left as it is
    color = np.array(color_of(1))
    colored, thick = (np.abs(drawn - color).max(-1) < 12 for drawn in (silent, speaking))
    assert 0 < colored.sum() <= thick.sum()
    distance = np.hypot(*(np.argwhere(colored)[:, ::-1] + 0.5 - (80, 60)).T)
    label = np.argwhere(colored)[:, 0] < 50  # the disc with the number is at the top
    assert np.abs(distance[~label] - 25).max() < 2
    # Inside, away from outline and label:
    assert np.abs(silent[75, 80] - 100).max() <= 2
    np.testing.assert_allclose(speaking[75, 80], 0.7 * 100 + 0.3 * color, atol=6)
    for drawn in (silent, speaking):
        assert np.abs(drawn[10, 10] - 100).max() <= 2


def test_all_values_are_blended_without_an_overflow() -> None:
    """Black to white pixels, those beyond the limited range too."""
    frame = np.random.default_rng(0).integers(0, 256, (180, 160), dtype=np.uint8)
    region = disc(25.0, (80.0, 60.0))
    inside = np.zeros((120, 160), bool)
    inside[region.place] = region.mask
    for number in range(1, 8):
        luma, _ = planes_of(draw_people(frame, {number: region}, {number}))
        before = planes_of(frame)[0].astype(float)
        color = float(yuv_of(np.array(color_of(number)))[0])
        # Below the label, which is at the top: outside, then within the line.
        np.testing.assert_array_equal(luma[60:][~inside[60:]], before[60:][~inside[60:]])
        part = np.s_[60:75, 70:90]
        np.testing.assert_allclose(luma[part], before[part] + 0.3 * (color - before[part]), atol=2)
        assert luma[84, 80] == color  # on the line


def test_a_tint_covers_a_region_at_odd_places() -> None:
    """A pixel of chroma belongs to four of luma."""
    regions = {1: MaskRegion(21, 31, np.ones((41, 51), np.float32))}
    drawn = draw_people(pack_rgb(np.full((120, 160, 3), 100, np.uint8)), regions, {1})
    _, chroma = planes_of(drawn)
    tinted = chroma.reshape(60, 80, 2)[15:26, 20:36].astype(int)  # without outline and label
    assert (tinted == tinted[0, 0]).all() and (tinted[0, 0] != chroma[0, 0]).all()


def test_masks_change_at_a_cut(tmp_path: Path) -> None:
    """Without it, a mask of one side fades out midway between key frames."""
    masks = np.zeros((2, 9, 16), np.uint8)
    masks[0, :, :4] = 255
    plain = recording(tmp_path, {0: masks}, {0: WHOLE})
    for cuts, last in (((), 3), ((2,), 2), ((5,), 5), ((3, 4), 3)):
        first = dataclasses.replace(plain, starts=[0], cuts=[cuts])
        seen = [MaskTrack(first, first.people[1]).at(t, SIZE) is not None for t in range(LENGTH)]
        assert seen == [t < last for t in range(LENGTH)], cuts
        visible = visible_frames(first, first.people[1])[:LENGTH]
        assert visible.tolist() == seen, cuts
