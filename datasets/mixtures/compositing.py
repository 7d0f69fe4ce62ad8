"""Pictures of a scene: people cut out of their clips and put together, with what is seen of each.

A scene is drawn twice: a few key frames in colour, and every frame in grey at a size of its own.
"""

import functools
from typing import NamedTuple

import numpy as np
import simplejpeg
import torch
from torch import Tensor
from torch.nn import functional

from cavmae.datasets.format.sample import MAX_SIDE, decode_frame, encode_frame
from cavmae.datasets.mixtures.clip_pool import ClipPool, PoolClip
from cavmae.datasets.mixtures.scene_spec import GRID, Place, SceneSpec, Seen

Size = tuple[int, int]  # height, width

GREY = (0.299, 0.587, 0.114)  # of red, green and blue, as JPEG has it
PLATE_FRAMES = 4  # that a background is made of
PLATES = 64  # backgrounds that are kept
BLOCK = 8  # pixels of JPEG's blocks
MASK_STEP = 4  # frames from mask to mask where grey frames are cut by them
AT_ONCE = 4  # grey pictures that are scaled together
MARGIN = 6  # pixels around a person that do not count as background


class Pictures(NamedTuple):
    """What is seen.

    Attributes:
        frames: uint8 [F, height, width, 3], key frames.
        motion: uint8 [T, h, w], all frames.
        masks: bool [P, F, height, width], of each person what nobody nearer covers.
        masked: bool [P], whether that is known.
    """

    frames: np.ndarray
    motion: np.ndarray
    masks: np.ndarray
    masked: np.ndarray


class _Canvas:
    """Pictures of a scene being drawn: float32 [N, C, height, width], 0 to 255.

    Args:
        size: of the canvas.
        scene: size that places are told in.
    """

    def __init__(self, size: Size, scene: Size, count: int, channels: int):
        self.size = size
        self.ratio = size[0] / scene[0], size[1] / scene[1]
        self.pixels = torch.zeros(count, channels, *size)

    def size_of(self, clip: PoolClip, place: Place) -> Size:
        """How large the whole picture of a clip is here."""
        height, width = clip.info.frame_size
        return (
            max(1, round(height * place.scale * self.ratio[0])),
            max(1, round(width * place.scale * self.ratio[1])),
        )

    def crop_visible(
        self, picture: Tensor, clip: PoolClip, place: Place
    ) -> tuple[Tensor, tuple[slice, slice]]:
        """A clip's picture as it is shown here: what lies inside, and where that is.

        Args:
            picture: uint8 [N, C, h, w].

        Returns:
            uint8 [N, C, rows, columns], and those rows and columns; perhaps none.
        """
        height, width = self.size_of(clip, place)
        shown = resize(picture, (height, width))
        if place.flip:
            shown = shown.flip(-1)
        top, left = round(place.top * self.ratio[0]), round(place.left * self.ratio[1])
        first, last = 0, self.size[1]
        if place.window is not None:
            first, last = (round(x * self.ratio[1]) for x in place.window)
        rows = slice(max(0, top), max(0, top, min(self.size[0], top + height)))
        columns = slice(max(first, left), max(first, left, min(last, left + width)))
        inside = shown[
            :, :, rows.start - top : rows.stop - top, columns.start - left : columns.stop - left
        ]
        return inside, (rows, columns)

    def paste(self, picture: Tensor, clip: PoolClip, place: Place, alpha: Tensor | None) -> None:
        """Puts a clip's picture [N, C, h, w] into the scene.

        Args:
            alpha: float [N, 1, rows, columns] of what lies inside, how much it covers; None: all.
        """
        inside, (rows, columns) = self.crop_visible(picture, clip, place)
        below = self.pixels[:, :, rows, columns]
        if alpha is None:
            below.copy_(inside)
        else:
            below.lerp_(inside.float(), alpha.expand_as(below))


class Compositor:
    """Draws the scenes of recipes.

    Args:
        pool: that their clips are in.
        scene: size of the scene, which places are told in, and of the key frames.
        motion: size of the grey frames.
        frames: T, 25 a second.
        keys: F, key frames.
    """

    def __init__(self, pool: ClipPool, scene: Size, motion: Size, frames: int, keys: int):
        self.pool, self.scene, self.motion = pool, scene, motion
        self.times = np.arange(frames) / GRID
        self.keys = ((np.arange(keys) + 0.5) * frames / keys).astype(np.int64)
        # A person is cut out of grey frames by every fourth mask and what lies between: heads move
        # little within 160 ms, and decoding masks costs as much as decoding frames.
        every = np.arange(0, frames, MASK_STEP)
        self.masked = np.union1d(every, self.keys)
        self.keys_masked = np.searchsorted(self.masked, self.keys)
        self.grey_masked = np.searchsorted(self.masked, every)
        self._plate = functools.lru_cache(PLATES)(self._build_plate)

    def compose_frames(self, spec: SceneSpec) -> Pictures:
        """Draws a scene.

        Raises:
            SampleError: a frame or mask of a clip is broken.
        """
        room = spec.room or self.scene
        ratio = self.motion[0] / self.scene[0], self.motion[1] / self.scene[1]
        small = round(room[0] * ratio[0]), round(room[1] * ratio[1])
        colour = _Canvas(room, room, len(self.keys), 3)
        grey = _Canvas(small, room, len(self.times), 1)
        if spec.background is not None:
            self._fill_background(colour, grey, self.pool.index_of[spec.background])
        masks = np.zeros((len(spec.people), len(self.keys), *room), dtype=bool)
        masked = np.zeros(len(spec.people), dtype=bool)
        for depth, number in enumerate(spec.order):
            person = spec.people[number]
            clip = self.pool.clips[self.pool.index_of[person.clip]]
            cut = spec.kind == "pasted" or (spec.kind == "own_background" and depth > 0)
            shown = clip.frames_at(person.start + self.times.clip(*person.active) * person.speed)
            soft = None
            if clip.masked:
                # Where nobody is cut out of grey frames only those of key frames are wanted.
                here = self._mask_alpha(clip, shown[self.masked if cut else self.keys])
                keys = here[self.keys_masked] if cut else here
                inside, (rows, columns) = colour.crop_visible(keys, clip, person)
                covered = inside.float() / 255
                seen = (covered[:, 0] > 0.5).numpy()
                masks[:, :, rows, columns] &= ~seen
                masks[number, :, rows, columns] = seen
                masked[number] = True
                if cut:
                    rough = grey.crop_visible(here[self.grey_masked], clip, person)[0].float() / 255
                    soft = (
                        _feather(covered, spec.feather),
                        self._interpolate(_feather(rough, spec.feather * grey.ratio[0])),
                    )
            self._paste_person(colour, grey, clip, person, shown, soft)
        frames, motion = _grade(colour.pixels, grey.pixels, spec)
        if spec.room is not None:
            frames, motion = _letterbox(frames, self.scene), _letterbox(motion, self.motion)
            masks = _letterbox(masks.reshape(-1, *room), self.scene).reshape(
                *masks.shape[:2], *self.scene
            )
        return Pictures(frames, motion, masks, masked)

    def _paste_person(
        self,
        colour: _Canvas,
        grey: _Canvas,
        clip: PoolClip,
        person: Seen,
        shown: np.ndarray,
        soft: tuple[Tensor, Tensor] | None,
    ) -> None:
        """Puts a person into both canvases.

        Args:
            shown: numbers of the clip's frames that are seen at the scene's times.
            soft: how much the person covers of each canvas; None: the whole picture is shown.
        """
        picture = self.pool.frames(clip, shown[self.keys].tolist(), grey=False)
        small = self.pool.frames(clip, shown.tolist(), grey=True, size=grey.size_of(clip, person))
        alpha, alpha_grey = soft if soft is not None else (None, None)
        colour.paste(torch.from_numpy(picture).permute(0, 3, 1, 2), clip, person, alpha)
        grey.paste(torch.from_numpy(small)[:, None], clip, person, alpha_grey)

    def _mask_alpha(self, clip: PoolClip, shown: np.ndarray) -> Tensor:
        """Where a person is in frames of a clip: uint8 [N, 1, h, w], 0 or 255."""
        masks = self.pool.masks(clip, shown.tolist())
        return torch.from_numpy((masks > 0).astype(np.uint8) * 255)[:, None]

    def _interpolate(self, alpha: Tensor) -> Tensor:
        """From every fourth frame to all T, linearly: [T / 4 or so, 1, h, w] -> [T, 1, h, w]."""
        frame = torch.arange(len(self.times))
        before = frame // MASK_STEP
        after = (before + 1).clamp(max=len(alpha) - 1)
        part = (frame % MASK_STEP / MASK_STEP)[:, None, None, None]
        return torch.lerp(alpha[before], alpha[after], part)

    def _fill_background(self, colour: _Canvas, grey: _Canvas, number: int) -> None:
        """A background that covers the scene, from its middle."""
        plate = self._plate(number)
        for canvas, weights in ((colour, None), (grey, torch.tensor(GREY))):
            scale = max(canvas.size[0] / plate.shape[1], canvas.size[1] / plate.shape[2])
            height = max(canvas.size[0], round(plate.shape[1] * scale))
            width = max(canvas.size[1], round(plate.shape[2] * scale))
            large = functional.interpolate(plate[None], (height, width), mode="bilinear")[0]
            top, left = (height - canvas.size[0]) // 2, (width - canvas.size[1]) // 2
            large = large[:, top : top + canvas.size[0], left : left + canvas.size[1]]
            if weights is not None:
                large = (large * weights[:, None, None]).sum(0, keepdim=True)
            canvas.pixels[:] = large

    def _build_plate(self, number: int) -> Tensor:
        """A clip's background without its person: float [3, h, w], 0 to 255.

        Each pixel's mean over the frames in which the person does not cover it; what is always
        covered is filled from around. Of a clip that is a background, with nobody to cut out: one
        frame.
        """
        clip = self.pool.clips[number]
        frames = ((np.arange(PLATE_FRAMES) + 0.5) * len(clip.times) / PLATE_FRAMES).astype(int)
        if not clip.masked:
            frame = self.pool.frames(clip, frames[:1].tolist(), grey=False)[0]
            return torch.from_numpy(frame).permute(2, 0, 1).float()
        pictures = torch.from_numpy(self.pool.frames(clip, frames.tolist(), grey=False))
        person = dilate(self.pool.masks(clip, frames.tolist()) > 0, MARGIN)
        free = torch.from_numpy(~person).float()[:, None]
        total = (pictures.permute(0, 3, 1, 2).float() * free).sum(0)
        return fill_holes(total, free.sum(0))


def resize(pictures: Tensor, size: Size) -> Tensor:
    """Pictures uint8 [N, C, h, w] at another size."""
    count, channels = pictures.shape[:2]
    if channels > 1 or count % AT_ONCE:
        return functional.interpolate(pictures, size, mode="bilinear", antialias=True)
    # torch lays each picture out as four channels, however many it has: four grey ones as one
    # picture are the same bytes in a third of the time.
    four = pictures.contiguous().view(-1, AT_ONCE, *pictures.shape[2:])
    found = functional.interpolate(four, size, mode="bilinear", antialias=True)
    return found.view(count, 1, *size)


def dilate(masks: np.ndarray, margin: int) -> np.ndarray:
    """Masks with all that lies within ``margin`` pixels in height and width: bool [N, h, w].

    What was found is laid over itself, moved by as much as leaves no gap at borders: log2 of the
    margin times, on bytes, which takes a tenth of the time of pooling.
    """
    found = masks.copy()
    for axis in (1, 2):
        reach = 0
        while reach < margin:
            by = min(reach + 1, margin - reach)
            before = np.moveaxis(found.copy(), axis, 0)
            moved = np.moveaxis(found, axis, 0)
            moved[by:] |= before[:-by]
            moved[:-by] |= before[by:]
            reach += by
    return found


def fill_holes(total: Tensor, weight: Tensor) -> Tensor:
    """Weighted means, and where there is no weight what lies around: [C, H, W] and [1, H, W].

    Halved until every pixel knows something, then laid under what was known in each size.
    """
    known = weight > 0
    if bool(known.all()) or min(weight.shape[-2:]) == 1:
        return total / weight.clamp(min=1e-6)
    smaller = [functional.avg_pool2d(x[None], 2, ceil_mode=True)[0] for x in (total, weight)]
    below = fill_holes(*smaller)
    size = total.shape[-2:]
    below = functional.interpolate(below[None], size, mode="bilinear", align_corners=False)[0]
    return torch.where(known, total / weight.clamp(min=1e-6), below)


def _feather(alpha: Tensor, width: float) -> Tensor:
    """A soft edge: the mean over a square of about twice ``width`` pixels. [N, 1, h, w]."""
    side = 2 * round(width) + 1
    if side == 1 or alpha.numel() == 0:
        return alpha
    return functional.avg_pool2d(alpha, side, stride=1, padding=side // 2, count_include_pad=False)


def _grade(colour: Tensor, grey: Tensor, recipe: SceneSpec) -> tuple[np.ndarray, np.ndarray]:
    """Light, colours and JPEG of a scene, after it was put together: one camera took it all.

    Args:
        colour, grey: the canvases, which are overwritten.
    """
    brightness, contrast, saturation = recipe.light
    gain = brightness * contrast
    offset = (1 - contrast) * brightness * float(colour.mean())
    # Pale by the grey of each pixel, then tinted: one matrix of the three colours.
    matrix = saturation * torch.eye(3) + (1 - saturation) * torch.tensor(GREY).expand(3, 3)
    matrix = matrix * torch.tensor(recipe.tint)[:, None]
    lit = functional.conv2d(colour, gain * matrix[:, :, None, None], offset * matrix.sum(1))
    frames = _to_uint8(lit).permute(0, 2, 3, 1).contiguous().numpy()
    motion = _to_uint8(grey.mul_(gain).add_(offset))[:, 0].numpy()
    frames = np.stack([decode_frame(encode_frame(frame, recipe.quality)) for frame in frames])
    return frames, _jpeg_round_trip(motion, recipe.quality)


def _letterbox(pictures: np.ndarray, size: Size) -> np.ndarray:
    """Pictures [N, h, w, ...] in the middle of black (or nobody) of a size."""
    found = np.zeros((len(pictures), *size, *pictures.shape[3:]), dtype=pictures.dtype)
    height, width = pictures.shape[1:3]
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    found[:, top : top + height, left : left + width] = pictures
    return found


def _to_uint8(picture: Tensor) -> Tensor:
    return picture.round_().clamp_(0, 255).byte()


def _jpeg_round_trip(frames: np.ndarray, quality: int) -> np.ndarray:
    """Grey pictures [N, h, w] after compression."""
    # JPEG's blocks of 8x8 know nothing of each other: pictures of whole blocks go as strips.
    count, height, width = frames.shape
    many = 1 if height % BLOCK else max(1, MAX_SIDE // height)
    shown = []
    for first in range(0, count, many):
        strip = np.ascontiguousarray(frames[first : first + many].reshape(-1, width, 1))
        data = simplejpeg.encode_jpeg(strip, quality=quality, colorspace="GRAY")
        shown.append(decode_frame(data, grey=True).reshape(-1, height, width))
    return np.concatenate(shown)
