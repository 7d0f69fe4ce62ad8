"""Crops around heads: where they are, what they show, and motion read from them."""

import pytest
import torch
from torch import Tensor

from cavmae.finetune.motion.settings import ConvMotionOptions
from cavmae.finetune.speaker.head_reader import MIDDLE, SIDE, HeadReader, head_boxes

FRAMES, KEYS = 16, 4


def silhouette(middle: float, top: float, width: float, size: int = 96) -> Tensor:
    """Mask of a head, an ellipse 1.3 times as high as wide, on shoulders twice as wide."""
    y, x = torch.meshgrid(torch.arange(size) + 0.5, torch.arange(size) + 0.5, indexing="ij")
    height = 1.3 * width
    head = ((x - middle) / (width / 2)) ** 2 + ((y - top - height / 2) / (height / 2)) ** 2 < 1
    body = (y > top + 1.1 * height) & ((x - middle).abs() < width)
    return head | body


def reader(size: int = 32) -> HeadReader:
    torch.manual_seed(0)
    return HeadReader(ConvMotionOptions(width=8, depth=1), size, 12).eval()


def masks_of(*people: Tensor) -> Tensor:
    """Masks [1, Q, F, H, W] of people who stand still."""
    return torch.stack(people).float()[None, :, None].expand(-1, -1, KEYS, -1, -1)


@pytest.mark.parametrize("middle, top, width", [(48, 10, 24), (30, 4, 16), (70.5, 30, 30)])
def test_a_head_is_the_top_of_a_person(middle: float, top: float, width: float) -> None:
    mask = silhouette(middle, top, width)
    stray = mask.clone()
    stray[0, 0] = stray[-1, -1] = True  # specks of a predicted mask
    for number, (box, seen) in enumerate(zip(*head_boxes(torch.stack([mask, stray])), strict=True)):
        assert seen
        assert float(box[0]) == pytest.approx(middle, abs=1.5), number
        assert float(box[1]) == pytest.approx(top, abs=0.15 * width), number
        assert float(box[2]) == pytest.approx(width, rel=0.2), number


def test_an_empty_mask_has_no_head() -> None:
    boxes, seen = head_boxes(torch.zeros(2, 12, 16, dtype=torch.bool))
    assert not seen.any()
    assert torch.isfinite(boxes).all()


def test_a_crop_shows_the_same_of_a_person_of_any_size_and_place() -> None:
    """Frames with a mouth below the head's middle: it lies at the same place of each crop."""
    people = (48.0, 10.0, 24.0), (40.0, 30.0, 36.0)
    grey = torch.full((2, FRAMES, 192, 192), 200, dtype=torch.uint8)
    for clip, (middle, top, width) in enumerate(people):
        left, right = 2 * (middle - 0.2 * width), 2 * (middle + 0.2 * width)
        mouth = 2 * (top + 1.0 * width)
        grey[clip, :, int(mouth - 4) : int(mouth + 4), int(left) : int(right)] = 0
    masks = torch.cat([masks_of(silhouette(*person)) for person in people])
    crops, mask_crops = reader().crop(grey, masks, torch.ones(2, 1, dtype=torch.bool))
    assert crops.shape == (2, FRAMES, 32, 32)
    assert mask_crops.shape == (2, 1, KEYS, 8, 8)
    rows = torch.arange(32) + 0.5
    for crop in crops[:, 0]:
        dark = (255 - crop).clamp(min=0) * (crop < 100)
        y, x = ((dark.sum(axis) * rows).sum() / dark.sum() / 32 for axis in (1, 0))
        assert float(x) == pytest.approx(0.5, abs=0.05)
        assert float(y) == pytest.approx(0.5 + (1.0 - MIDDLE) / SIDE, abs=0.08)
        assert 0.2 < float((crop < 100).any(0).float().mean()) < 0.5  # 0.4 / SIDE of its width


def test_a_crop_follows_its_head() -> None:
    """Somebody who walks to the right, and is hidden in the second key frame, stays in the crop."""
    grey = torch.full((1, FRAMES, 96, 96), 200, dtype=torch.uint8)
    places = torch.linspace(30, 60, FRAMES)
    for frame, middle in enumerate(places):
        grey[0, frame, 28:34, int(middle) - 4 : int(middle) + 4] = 0
    keys = [(k + 0.5) * FRAMES / KEYS - 0.5 for k in range(KEYS)]
    masks = torch.stack([silhouette(30 + 30 * key / (FRAMES - 1), 10, 20) for key in keys])
    masks[1] = False
    crops, _ = reader().crop(grey, masks[None, None].float(), torch.ones(1, 1, dtype=torch.bool))
    for frame in (0, 2, 9, FRAMES - 1):
        assert bool((crops[0, frame, :, 8:24] < 100).any()), frame


@pytest.mark.parametrize("gradients", [True, False])  # at once, or one slot after the other
def test_slots_are_read_alone(gradients: bool) -> None:
    """The motion of a slot does not depend on other slots or clips; without a mask it is 0."""
    torch.manual_seed(1)
    grey = torch.randint(0, 256, (2, FRAMES, 96, 96), dtype=torch.uint8)
    nobody = torch.zeros(96, 96, dtype=torch.bool)
    left, right = silhouette(28, 20, 20), silhouette(68, 30, 24)
    masks = torch.cat([masks_of(left, nobody, right), masks_of(nobody, right, left)])
    read = reader()
    with torch.set_grad_enabled(gradients):
        motion = read(grey, masks)
    assert motion.requires_grad == gradients
    assert motion.shape == (2, 3, FRAMES, 12)
    for clip, slot, person in ((0, 0, left), (0, 2, right), (1, 1, right), (1, 2, left)):
        alone = read(grey[clip : clip + 1], masks_of(person))[0, 0]
        torch.testing.assert_close(motion[clip, slot], alone, atol=1e-5, rtol=1e-4)
    assert not motion[0, 1].any()
    assert not motion[1, 0].any()


def test_crops_move_in_training_only() -> None:
    torch.manual_seed(1)
    grey = torch.randint(0, 256, (1, FRAMES, 96, 96), dtype=torch.uint8)
    masks, chosen = masks_of(silhouette(48, 10, 24)), torch.ones(1, 1, dtype=torch.bool)
    read = reader()
    first, again = (read.crop(grey, masks, chosen)[0] for _ in range(2))
    assert torch.equal(first, again)
    read.train()
    assert not torch.equal(first, read.crop(grey, masks, chosen)[0])


def test_without_any_head_all_weights_have_gradients() -> None:
    read = reader().train()
    grey = torch.zeros(2, FRAMES, 32, 32, dtype=torch.uint8)
    motion = read(grey, torch.zeros(2, 3, KEYS, 8, 8))
    assert not motion.any()
    motion.sum().backward()
    for name, parameter in read.named_parameters():
        assert parameter.grad is not None, name
