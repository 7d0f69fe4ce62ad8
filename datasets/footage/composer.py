"""Composition of footage specs into frames, audio and ground truth.

People, plates and voices are those of :mod:`cavmae.datasets.mixtures`; a recording pastes every
frame in colour, and moves its people and its camera.
"""

import functools
import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cavmae.datasets.footage.spec import FootageShot, FootageSpec, PlacedTalker, Talker
from cavmae.datasets.mixtures.clip_pool import ClipPool, PoolClip
from cavmae.datasets.mixtures.compositing import background_plate, feather
from cavmae.datasets.mixtures.mixing import Mixture, fade, mix
from cavmae.datasets.mixtures.paste_canvas import PasteCanvas
from cavmae.datasets.mixtures.scene_spec import Place
from cavmae.datasets.stream.features import SAMPLE_RATE
from cavmae.datasets.stream.rates import VIDEO_RATE

BLOCK = 16  # frames that are composed together while nothing but the people's clips moves
PLATES = 8  # background plates in the cache
PLATE_MARGIN = 1.25  # size of a plate behind a moving camera, relative to the picture
SAMPLES = SAMPLE_RATE // VIDEO_RATE  # of a frame


class FootageBlock(NamedTuple):
    """Consecutive frames of a recording.

    Attributes:
        frames: uint8 [N, height, width, 3].
        people: uint8 [N, height, width], number of the person whose pixel it is, from 1; 0: nobody.
    """

    frames: np.ndarray
    people: np.ndarray


class FootageComposer:
    """Composes recordings from their specs.

    Args:
        pool: clips of the specs, all of them with masks.
    """

    def __init__(self, pool: ClipPool):
        self.pool = pool
        self._plate = functools.lru_cache(PLATES)(functools.partial(background_plate, pool))

    def compose_audio(self, spec: FootageSpec) -> Mixture:
        """Mixture, and the voice of each talker; zeros for the silent ones.

        Raises:
            SampleError: a waveform is broken.
        """
        samples = spec.frames * SAMPLES
        waves = [self._voice(talker, samples) for talker in spec.talkers]
        return mix(waves, [talker.level_db or 0.0 for talker in spec.talkers], samples)

    def compose_frames(self, spec: FootageSpec) -> Iterator[FootageBlock]:
        """Frames and masks, in blocks.

        Raises:
            SampleError: a frame or mask of a clip is broken.
        """
        first = 0
        for shot in spec.shots:
            numbers = range(first, first + shot.frames)
            for _, group in itertools.groupby(numbers, functools.partial(_corners, spec, shot)):
                still = np.array(list(group))
                for begin in range(0, len(still), BLOCK):
                    yield self._compose_block(spec, shot, still[begin : begin + BLOCK])
            first += shot.frames

    def _voice(self, talker: Talker, samples: int) -> np.ndarray:
        """Voice of a talker as their clip gives it, silent outside of its spans: [samples]."""
        voice = np.zeros(samples, dtype=np.float32)
        if talker.level_db is None:
            return voice
        clip = self._clip(talker.clip)
        period = round(_period(clip) * SAMPLE_RATE)
        once = self.pool.waveform(clip, 0.0, period)
        played = np.resize(np.roll(once, -round(talker.offset * SAMPLE_RATE)), samples)
        for span in talker.active:
            first, last = (min(round(t * SAMPLE_RATE), samples) for t in span)
            voice += fade(played, first, last)
        return voice

    def _compose_block(
        self, spec: FootageSpec, shot: FootageShot, numbers: np.ndarray
    ) -> FootageBlock:
        """Frames ``numbers`` of a shot, in which nothing is displaced."""
        camera, *corners = _corners(spec, shot, int(numbers[0]))
        canvas = PasteCanvas(spec.size, spec.size, len(numbers), 3)
        if shot.background is not None:
            self._fill(canvas, self.pool.index_of[shot.background], spec, camera)
        people = torch.zeros(len(numbers), *spec.size, dtype=torch.uint8)
        for appearance, corner in zip(shot.appearances, corners, strict=True):
            self._paste(canvas, people, spec, appearance, corner, numbers)
        brightness, contrast = shot.light
        middle = brightness * (1 - contrast) * 127.5
        lit = canvas.pixels.mul_(brightness * contrast).add_(middle).round_().clamp_(0, 255)
        frames = lit.byte().permute(0, 2, 3, 1).contiguous().numpy()
        return FootageBlock(frames, people.numpy())

    def _fill(self, canvas: PasteCanvas, number: int, spec: FootageSpec, camera: "_Corner") -> None:
        """Fill the canvas with a background plate, displaced by the camera."""
        plate = self._plate(number)
        if spec.camera is None:
            canvas.fill(plate)
            return
        height, width = (round(side * PLATE_MARGIN) for side in spec.size)
        wide = PasteCanvas((height, width), (height, width), 1, 3)
        wide.fill(plate)
        top = (height - spec.size[0]) // 2 - camera[1]
        left = (width - spec.size[1]) // 2 - camera[0]
        canvas.pixels[:] = wide.pixels[:, :, top : top + spec.size[0], left : left + spec.size[1]]

    def _paste(
        self, canvas: PasteCanvas, people: Tensor, spec: FootageSpec, appearance: PlacedTalker,
        corner: "_Corner", numbers: np.ndarray,
    ) -> None:  # fmt: skip
        """Paste a person into frames, and into the map of people uint8 [N, height, width]."""
        talker = spec.talkers[appearance.talker]
        clip = self._clip(talker.clip)
        times = (talker.offset + numbers / VIDEO_RATE) % _period(clip)
        indices = clip.frames_at(times).tolist()
        place = Place(appearance.scale, *corner, appearance.flip, appearance.window)
        masks = (self.pool.masks(clip, indices) > 0).astype(np.uint8) * 255
        visible, (rows, columns) = canvas.crop_visible(
            torch.from_numpy(masks)[:, None], clip, place
        )
        if not visible.numel():  # outside of the picture
            return
        alpha = visible.float() / 255
        below = people[:, rows, columns]
        if not appearance.cutout:
            below.zero_()
        below[alpha[:, 0] > 0.5] = appearance.talker + 1
        pixels = self.pool.frames(clip, indices, grey=False)
        canvas.paste(
            torch.from_numpy(pixels).permute(0, 3, 1, 2), clip, place,
            feather(alpha, spec.feather) if appearance.cutout else None,
        )  # fmt: skip

    def _clip(self, key: str) -> PoolClip:
        return self.pool.clips[self.pool.index_of[key]]


_Corner = tuple[int, int]  # left and top in pixels


def _period(clip: PoolClip) -> float:
    """Seconds after which a clip begins anew: a whole number of frames of 40 ms."""
    return max(1, int(clip.info.duration * VIDEO_RATE + 1e-6)) / VIDEO_RATE


def _corners(spec: FootageSpec, shot: FootageShot, number: int) -> tuple[_Corner, ...]:
    """Displacement of the picture by the camera, and the corners of the people of a shot."""
    time = number / VIDEO_RATE
    right = down = 0.0
    if (camera := spec.camera) is not None:
        across, along = (np.sin(2 * np.pi * f * time) for f in camera.frequencies)
        progress = number / max(1, spec.frames - 1) - 0.5
        right, down = -camera.pan * progress - camera.shake * across, -camera.shake * along
    corners = [(round(right), round(down))]
    for appearance in shot.appearances:
        times, lefts, tops = zip(*appearance.path, strict=True)
        left, top = np.interp(time, times, lefts), np.interp(time, times, tops)
        corners.append((round(left + right), round(top + down)))
    return tuple(corners)
