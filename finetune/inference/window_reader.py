"""Windows of a recording, one after the other, in the sizes of the model."""

import contextlib
import itertools
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from cavmae.common.boxes import WHOLE, Box
from cavmae.datasets.media.playback import SAMPLES
from cavmae.finetune.inference.predictor import WindowPredictor
from cavmae.finetune.inference.shots import thumbnail
from cavmae.finetune.inference.sources import MediaSource
from cavmae.finetune.inference.views import KeyView, WindowView

# Frames that are read together. Windows keep none in full size: of 1280x720 they would take 180 MB.
FRAMES_PER_READ = 8
# Frames between two windows with crops from which on they are skipped by a seek; before the first
# of these windows all are.
WORTH_SEEKING = 250


class Window(NamedTuple):
    """Part of a recording that the model sees at once.

    Attributes:
        start: first frame.
        view: of the whole frames.
        thumbnails: uint8 [h, w, 3] each, T of them, of
            :func:`~cavmae.finetune.inference.shots.thumbnail`.
        is_black: whether no frame has anything but black.
        wave: float32 [S], the mixture.
    """

    start: int
    view: WindowView
    thumbnails: Sequence[np.ndarray]
    is_black: bool
    wave: np.ndarray


def read_windows(
    predictor: WindowPredictor,
    media: MediaSource,
    starts: Sequence[int],
    sound_lead: int = 0,
    ahead: bool = True,
) -> Generator[Window]:
    """Windows in order.

    Args:
        predictor: in whose sizes frames are seen.
        media: the recording, from its beginning.
        starts: first frames of the windows, ascending; frames before 0 are the first one.
        sound_lead: samples by which the sound is ahead of the pictures; fewer than a window has.
        ahead: whether another thread reads the next window meanwhile.

    Raises:
        MediaError: the recording cannot be read.
    """
    reader = _Reader(predictor, media, starts, sound_lead)
    if not ahead:
        for start in starts:
            yield reader.read(start)
        return
    with ThreadPoolExecutor(1, "window-reader") as pool:
        # The reader is to leave the cores to the model. PyTorch takes its number of threads for
        # that of all threads to come, too, which is put back.
        threads = torch.get_num_threads()
        pool.submit(torch.set_num_threads, 1).result()
        torch.set_num_threads(threads)
        upcoming = pool.submit(reader.read, starts[0])
        for following in starts[1:]:
            window = upcoming.result()
            upcoming = pool.submit(reader.read, following)
            yield window
        yield upcoming.result()


class _SmallFrame(NamedTuple):
    """A frame in the sizes of the model; ``key_view`` is None where it is no window's key frame."""

    motion: Tensor
    key_view: KeyView | None
    thumbnail: np.ndarray
    is_black: bool


class _Reader:
    """Reads windows, and makes what the model sees of each frame once."""

    def __init__(
        self,
        predictor: WindowPredictor,
        media: MediaSource,
        starts: Sequence[int],
        sound_lead: int,
    ):
        self._predictor, self._media, self._sound_lead = predictor, media, sound_lead
        self._keys = {start + int(key) for start in starts for key in predictor.keys}
        self._small_frames: dict[int, _SmallFrame] = {}  # by frame, of the last window
        self._frame_size = 0, 0

    def read(self, start: int) -> Window:
        length = self._predictor.config.frames
        wave = self._read_audio(start * SAMPLES - self._sound_lead, length * SAMPLES)
        numbers = range(start, start + length)
        self._small_frames = {
            number: small for number, small in self._small_frames.items() if number in numbers
        }
        fresh = [number for number in numbers if number not in self._small_frames]
        for number, frame in _frames(self._media, fresh):
            self._small_frames[number] = self._shrink(frame, number in self._keys)
            self._frame_size = frame.shape[0], frame.shape[1]
        small_frames = [self._small_frames[number] for number in numbers]
        key_views = [small_frames[key].key_view for key in self._predictor.keys]
        view = WindowView(
            WHOLE,
            self._frame_size,
            torch.stack([small.motion for small in small_frames]),
            [key_view for key_view in key_views if key_view is not None],
        )
        thumbnails = [small.thumbnail for small in small_frames]
        return Window(start, view, thumbnails, all(s.is_black for s in small_frames), wave)

    def _shrink(self, frame: np.ndarray, is_key: bool) -> _SmallFrame:
        sizes = self._predictor.sizes
        return _SmallFrame(
            sizes.motion_of(frame, WHOLE),
            sizes.key_of(frame, WHOLE) if is_key else None,
            thumbnail(frame),
            not frame.any(),
        )

    def _read_audio(self, first: int, count: int) -> np.ndarray:
        """Samples from any one on, float32 [count]; silence before the sound begins."""
        silent = max(0, -first)
        frame, skipped = divmod(first + silent, SAMPLES)
        frames = -(-(skipped + count - silent) // SAMPLES)
        wave = self._media.read_audio(frame, frames)[skipped : skipped + count - silent]
        return np.pad(wave, (silent, 0))


class CropReader:
    """Reads the crops of second looks, from a second decoding of the recording.

    Most recordings have few people who are small, or none: the second decoding begins with the
    first of them. In exchange windows keep no frames in full size.

    Args:
        predictor: in whose sizes crops are seen.
        media: the recording.
        starts: first frames of the windows, ascending; frames before 0 are the first one.
    """

    def __init__(self, predictor: WindowPredictor, media: MediaSource, starts: Sequence[int]):
        self._predictor, self._media, self._starts = predictor, media, starts
        self._again: MediaSource | None = None
        self._closing = contextlib.ExitStack()
        self._shared: dict[int, np.ndarray] = {}  # frames by number, that the next window has, too
        self._end = min(starts, default=0)  # frame after the last one that was read

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._closing.close()

    def views(self, window: int, boxes: Sequence[Box]) -> list[WindowView]:
        """Views of crops of a window; windows come in order.

        Args:
            window: index of the window.
            boxes: the crops, at least one.

        Raises:
            MediaError: the recording cannot be read.
        """
        sizes, keys = self._predictor.sizes, set(self._predictor.keys.tolist())
        start = self._starts[window]
        frame_size = 0, 0
        motion: list[list[Tensor]] = [[] for _ in boxes]
        key_views: list[list[KeyView]] = [[] for _ in boxes]
        for number, frame in self._frames_of(window):
            frame_size = frame.shape[0], frame.shape[1]
            for index, box in enumerate(boxes):
                motion[index].append(sizes.motion_of(frame, box))
                if number - start in keys:
                    key_views[index].append(sizes.key_of(frame, box))
        return [
            WindowView(box, frame_size, torch.stack(motion[index]), key_views[index])
            for index, box in enumerate(boxes)
        ]

    def _frames_of(self, window: int) -> Iterator[tuple[int, np.ndarray]]:
        """Frames of a window by number."""
        start = self._starts[window]
        end = start + self._predictor.config.frames
        following = self._starts[window + 1] if window + 1 < len(self._starts) else end
        media = self._opened(start)
        shared, self._shared = self._shared, {}
        unread = range(self._end, end)
        self._end = max(self._end, end)
        for number, frame in itertools.chain(shared.items(), _frames(media, unread)):
            if number >= following:
                self._shared[number] = frame
            if number >= start:
                yield number, frame

    def _opened(self, start: int) -> MediaSource:
        """The second decoding, at a frame or before it.

        A frame that does not decode shows the one before it, as it does in the first decoding:
        where there are such frames, nothing is left out.
        """
        least = WORTH_SEEKING if self._again is not None else 1
        if start - self._end >= least and not self._media.missing:
            self._closing.close()
            self._again, self._shared, self._end = None, {}, start
        if self._again is None:
            first = min(max(0, self._end), self._media.frames - 1)
            self._again = self._closing.enter_context(self._media.reopen(first))
        return self._again


def _frames(media: MediaSource, numbers: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Frames of consecutive numbers; beyond the ends of the recording its first and last one."""
    for at in range(0, len(numbers), FRAMES_PER_READ):
        part = numbers[at : at + FRAMES_PER_READ]
        indices = [min(max(0, number), media.frames - 1) for number in part]
        frames = media.read_frames(indices[0], indices[-1] - indices[0] + 1)
        for number, index in zip(part, indices, strict=True):
            yield number, frames[index - indices[0]]
