"""Compositing of a scene's frames and masks from its clips.

A scene is composed twice: a few key frames in colour, and all frames in grey at their own size.
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
from cavmae.datasets.mixtures.paste_canvas import PasteCanvas, Size, pixel_range
from cavmae.datasets.mixtures.scene_spec import Occluder, Place, SceneSpec
from cavmae.datasets.stream.rates import VIDEO_RATE

GREY = (0.299, 0.587, 0.114)  # weights of red, green and blue in luma, as in JPEG
PLATE_FRAMES = 4  # frames that a background plate averages
PLATES = 64  # background plates in the cache
BLOCK = 8  # side of JPEG's blocks, in pixels
MASK_STEP = 4  # grey frames from one decoded mask to the next
TEXTURE_SIZE = (128, 128)  # of a surface with noise, in pixels
OCTAVES = 6  # of that noise, from half a surface down to a pixel or two
MARGIN = 6  # pixels around a person that do not count as background


class ComposedFrames(NamedTuple):
    """Frames and masks of a scene.

    Attributes:
        frames: uint8 [F, height, width, 3], key frames.
        motion: uint8 [T, h, w], all frames in grey.
        masks: bool [P, F, height, width], pixels of each person that nothing nearer covers.
        masked: bool [P], whether the mask is known.
    """

    frames: np.ndarray
    motion: np.ndarray
    masks: np.ndarray
    masked: np.ndarray


class Compositor:
    """Composes frames and masks of scene specs.

    Args:
        pool: clips of the specs.
        scene: (height, width) of the key frames, which positions refer to.
        motion: (height, width) of the grey frames.
        frames: T, number of grey frames at 25 Hz.
        keys: F, number of key frames.
    """

    def __init__(self, pool: ClipPool, scene: Size, motion: Size, frames: int, keys: int):
        self.pool, self.scene, self.motion = pool, scene, motion
        self.times = np.arange(frames) / VIDEO_RATE
        self.keys = ((np.arange(keys) + 0.5) * frames / keys).astype(np.int64)
        # Grey frames take every fourth mask and interpolate between: heads move little within
        # 160 ms, and decoding masks costs as much as decoding frames.
        mask_frames = np.arange(0, frames, MASK_STEP)
        self.masked = np.union1d(mask_frames, self.keys)
        self.keys_masked = np.searchsorted(self.masked, self.keys)
        self.grey_masked = np.searchsorted(self.masked, mask_frames)
        self._plate = functools.lru_cache(PLATES)(functools.partial(background_plate, pool))

    def compose_frames(self, spec: SceneSpec) -> ComposedFrames:
        """Composes frames and masks of a scene.

        Raises:
            SampleError: a frame or mask of a clip is broken.
        """
        inner_size = spec.room or self.scene
        ratio = self.motion[0] / self.scene[0], self.motion[1] / self.scene[1]
        grey_size = round(inner_size[0] * ratio[0]), round(inner_size[1] * ratio[1])
        colour = PasteCanvas(inner_size, inner_size, len(self.keys), 3)
        grey = PasteCanvas(grey_size, inner_size, len(self.times), 1)
        if spec.background is not None:
            clip = self.pool.clips[self.pool.index_of[spec.background]]
            self._fill_background(colour, grey, clip, spec.background_start)
        masks = np.zeros((len(spec.people), len(self.keys), *inner_size), dtype=bool)
        masked = np.zeros(len(spec.people), dtype=bool)
        for depth, number in enumerate(spec.order):
            person = spec.people[number]
            clip = self.pool.clips[self.pool.index_of[person.clip]]
            is_cutout = spec.kind == "pasted" or (spec.kind == "own_background" and depth > 0)
            indices = clip.frames_at(person.start + self.times.clip(*person.active) * person.speed)
            alphas = None
            if person.rows is not None:  # a whole rectangle lies over those behind
                masks[:, :, slice(*person.rows), slice(*(person.window or (0, None)))] = False
            if clip.masked:
                # Only a cut-out needs masks of the grey frames.
                mask_alpha = self._mask_alpha(
                    clip, indices[self.masked if is_cutout else self.keys]
                )
                key_alpha = mask_alpha[self.keys_masked] if is_cutout else mask_alpha
                visible, (rows, columns) = colour.crop_visible(key_alpha, clip, person)
                alpha = visible.float() / 255
                visible_mask = (alpha[:, 0] > 0.5).numpy()
                masks[:, :, rows, columns] &= ~visible_mask
                masks[number, :, rows, columns] = visible_mask
                masked[number] = True
                if is_cutout:
                    sparse, _ = grey.crop_visible(mask_alpha[self.grey_masked], clip, person)
                    alphas = (
                        feather(alpha, spec.feather),
                        self._interpolate(
                            feather(sparse.float() / 255, spec.feather * grey.ratio[0])
                        ),
                    )
            self._paste_clip(colour, grey, clip, person, indices, alphas)
        for occluder in spec.occluders:
            opacity = self._draw_occluder(colour, grey, occluder)
            masks &= opacity <= 0.5
        frames, motion = _grade(colour.pixels, grey.pixels, spec)
        if spec.room is not None:
            frames, motion = _letterbox(frames, self.scene), _letterbox(motion, self.motion)
            masks = _letterbox(masks.reshape(-1, *inner_size), self.scene).reshape(
                *masks.shape[:2], *self.scene
            )
        return ComposedFrames(frames, motion, masks, masked)

    def _paste_clip(
        self,
        colour: PasteCanvas,
        grey: PasteCanvas,
        clip: PoolClip,
        place: Place,
        indices: np.ndarray,
        alphas: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        """Pastes a clip into both canvases.

        Args:
            indices: int64 [T], the clip's frame at each time of the scene.
            alphas: its opacity on each canvas; None: the whole frame is pasted.
        """
        key_frames = self.pool.frames(clip, indices[self.keys].tolist(), grey=False)
        grey_frames = self.pool.frames(
            clip, indices.tolist(), grey=True, size=grey.size_of(clip, place)
        )
        alpha, alpha_grey = alphas if alphas is not None else (None, None)
        colour.paste(torch.from_numpy(key_frames).permute(0, 3, 1, 2), clip, place, alpha)
        grey.paste(torch.from_numpy(grey_frames)[:, None], clip, place, alpha_grey)

    def _mask_alpha(self, clip: PoolClip, indices: np.ndarray) -> Tensor:
        """Opacity of a person in frames of a clip: uint8 [N, 1, h, w], 0 or 255."""
        masks = self.pool.masks(clip, indices.tolist())
        return torch.from_numpy((masks > 0).astype(np.uint8) * 255)[:, None]

    def _interpolate(self, alpha_n1hw: Tensor) -> Tensor:
        """Interpolates linearly from every fourth frame to all: [ceil(T / 4), ...] -> [T, ...]."""
        frame = torch.arange(len(self.times))
        before = frame // MASK_STEP
        after = (before + 1).clamp(max=len(alpha_n1hw) - 1)
        weight = (frame % MASK_STEP / MASK_STEP)[:, None, None, None]
        return torch.lerp(alpha_n1hw[before], alpha_n1hw[after], weight)

    def _fill_background(
        self, colour: PasteCanvas, grey: PasteCanvas, clip: PoolClip, start: float | None
    ) -> None:
        """Fills both canvases with a clip that plays, or with its still plate.

        Args:
            start: in seconds; None: the plate.
        """
        if start is None:
            plate = self._plate(self.pool.index_of[clip.key])
            colour.fill(plate)
            grey.fill(plate, torch.tensor(GREY))
            return
        self._paste_clip(
            colour, grey, clip, covering(clip, colour.size), clip.frames_at(start + self.times)
        )

    def _draw_occluder(
        self, colour: PasteCanvas, grey: PasteCanvas, occluder: Occluder
    ) -> np.ndarray:
        """Draws an occluder on both canvases.

        Returns:
            its opacity on the colour canvas, float32 [height, width] from 0 to 1.
        """
        plate = self._plate(self.pool.index_of[occluder.surface])
        height, width = plate.shape[1:]
        left, top, right, bottom = occluder.crop
        rows = pixel_range(top * height, bottom * height, height)
        columns = pixel_range(left * width, right * width, width)
        surface = plate[:, rows, columns] * torch.tensor(occluder.tint)[:, None, None]
        if occluder.texture:
            surface = functional.interpolate(surface[None], TEXTURE_SIZE, mode="bilinear")[0]
            surface = surface * (1 + occluder.texture * texture_noise(occluder.seed))
        surface = surface.clamp(0, 255)
        opacity = colour.draw_polygon(occluder.outline, surface)
        grey.draw_polygon(occluder.outline, surface, torch.tensor(GREY))
        return opacity.numpy()


def covering(clip: PoolClip, scene: Size) -> Place:
    """Place at which a clip covers a scene of (height, width) pixels, centred and cropped."""
    height, width = clip.info.frame_size
    scale = max(scene[0] / height, scene[1] / width)
    left, top = (scene[1] - scale * width) / 2, (scene[0] - scale * height) / 2
    return Place(scale, round(left), round(top), False, None)


def background_plate(pool: ClipPool, number: int) -> Tensor:
    """Background plate of a clip, without its person: float [3, h, w], 0 to 255.

    Each pixel is its mean over the frames in which the person does not cover it; pixels that are
    always covered are filled from around. A clip without masks, or without a person, gives one of
    its frames.

    Raises:
        SampleError: a frame or mask of the clip is broken.
    """
    clip = pool.clips[number]
    frames = ((np.arange(PLATE_FRAMES) + 0.5) * len(clip.times) / PLATE_FRAMES).astype(int)
    if not clip.masked or clip.without_people:
        frame = pool.frames(clip, frames[:1].tolist(), grey=False)[0]
        return torch.from_numpy(frame).permute(2, 0, 1).float()
    frames_nhwc = torch.from_numpy(pool.frames(clip, frames.tolist(), grey=False))
    person = dilate(pool.masks(clip, frames.tolist()) > 0, MARGIN)
    free = torch.from_numpy(~person).float()[:, None]
    total = (frames_nhwc.permute(0, 3, 1, 2).float() * free).sum(0)
    return fill_holes(total, free.sum(0))


def dilate(masks: np.ndarray, margin: int) -> np.ndarray:
    """Dilates masks by a square of ``margin`` pixels on each side: bool [N, h, w].

    Each pass combines the masks with shifted copies and doubles the reach: log2(margin) passes on
    bytes take a tenth of the time of pooling.
    """
    dilated = masks.copy()
    for axis in (1, 2):
        reach = 0
        while reach < margin:
            shift = min(reach + 1, margin - reach)
            before = np.moveaxis(dilated.copy(), axis, 0)
            moved = np.moveaxis(dilated, axis, 0)
            moved[shift:] |= before[:-shift]
            moved[:-shift] |= before[shift:]
            reach += shift
    return dilated


def texture_noise(seed: int) -> Tensor:
    """Noise of all sizes, float32 [h, w] of :data:`TEXTURE_SIZE`, -1 to 1.

    Grids of random values, each twice as fine and half as strong as the one before. Their cells are
    twice as wide as high or the other way round, as grain of wood and folds of fabric are.
    """
    rng = np.random.default_rng(seed)
    noise = torch.zeros(TEXTURE_SIZE)
    stretched = bool(rng.integers(2))
    for octave in range(OCTAVES):
        cells = 2 ** (octave + 1)
        shape = (2 * cells, cells) if stretched else (cells, 2 * cells)
        values = torch.from_numpy(rng.uniform(-1, 1, shape).astype(np.float32))
        noise += 0.5 ** (octave + 1) * functional.interpolate(
            values[None, None], TEXTURE_SIZE, mode="bicubic", align_corners=False
        )[0, 0].clamp(-1, 1)
    return noise


def fill_holes(total: Tensor, weight: Tensor) -> Tensor:
    """Weighted means, with pixels without weight filled from around: [C, H, W].

    An image pyramid: halves the resolution until every pixel has weight, then fills each level's
    holes from the coarser one.

    Args:
        total: weighted sums [C, H, W].
        weight: [1, H, W].
    """
    known = weight > 0
    if bool(known.all()) or min(weight.shape[-2:]) == 1:
        return total / weight.clamp(min=1e-6)
    smaller = [functional.avg_pool2d(x[None], 2, ceil_mode=True)[0] for x in (total, weight)]
    below = fill_holes(*smaller)
    size = total.shape[-2:]
    below = functional.interpolate(below[None], size, mode="bilinear", align_corners=False)[0]
    return torch.where(known, total / weight.clamp(min=1e-6), below)


def feather(alpha_n1hw: Tensor, width: float) -> Tensor:
    """Softens edges: means over a square of about twice ``width`` pixels, [N, 1, h, w]."""
    side = 2 * round(width) + 1
    if side == 1 or alpha_n1hw.numel() == 0:
        return alpha_n1hw
    return functional.avg_pool2d(
        alpha_n1hw, side, stride=1, padding=side // 2, count_include_pad=False
    )


def _grade(colour: Tensor, grey: Tensor, spec: SceneSpec) -> tuple[np.ndarray, np.ndarray]:
    """Applies light, tint and JPEG to the composed scene, as if one camera had taken it.

    Args:
        colour, grey: pixels [N, C, height, width] of the canvases, which are overwritten.

    Returns:
        key frames uint8 [F, height, width, 3], and grey frames uint8 [T, h, w].
    """
    brightness, contrast, saturation = spec.light
    gain = brightness * contrast
    offset = (1 - contrast) * brightness * float(colour.mean())
    # Desaturation towards each pixel's luma, then tint: one matrix of the three colours.
    matrix = saturation * torch.eye(3) + (1 - saturation) * torch.tensor(GREY).expand(3, 3)
    matrix = matrix * torch.tensor(spec.tint)[:, None]
    lit = functional.conv2d(colour, gain * matrix[:, :, None, None], offset * matrix.sum(1))
    frames = _to_uint8(lit).permute(0, 2, 3, 1).contiguous().numpy()
    motion = _to_uint8(grey.mul_(gain).add_(offset))[:, 0].numpy()
    frames = np.stack([decode_frame(encode_frame(frame, spec.quality)) for frame in frames])
    return frames, _jpeg_round_trip(motion, spec.quality)


def _letterbox(frames: np.ndarray, size: Size) -> np.ndarray:
    """Pads frames or masks [N, h, w, ...] with zeros on all sides to a (height, width)."""
    padded = np.zeros((len(frames), *size, *frames.shape[3:]), dtype=frames.dtype)
    height, width = frames.shape[1:3]
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    padded[:, top : top + height, left : left + width] = frames
    return padded


def _to_uint8(pixels: Tensor) -> Tensor:
    return pixels.round_().clamp_(0, 255).byte()


def _jpeg_round_trip(frames: np.ndarray, quality: int) -> np.ndarray:
    """Compresses and decompresses grey frames uint8 [N, h, w]."""
    # JPEG codes blocks of 8x8 independently: frames of whole blocks are coded together in a strip.
    count, height, width = frames.shape
    per_strip = 1 if height % BLOCK else max(1, MAX_SIDE // height)
    decoded = []
    for first in range(0, count, per_strip):
        strip = np.ascontiguousarray(frames[first : first + per_strip].reshape(-1, width, 1))
        data = simplejpeg.encode_jpeg(strip, quality=quality, colorspace="GRAY")
        decoded.append(decode_frame(data, grey=True).reshape(-1, height, width))
    return np.concatenate(decoded)
