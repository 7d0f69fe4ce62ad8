"""Windows of a recording, one after the other, in the sizes of the model."""

import contextlib
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

# Frames that are read together. They are all that is kept in full size: the frames of a window of
# 1280x720 take 180 MB.
FRAMES_PER_READ = 8


class Window(NamedTuple):
    """Part of a recording that the model sees at once.

    Attributes:
        start: first frame.
        view: of the whole frames.
        thumbnails: uint8 [h, w, 3] each, T of them, of
            :func:`~cavmae.finetune.inference.shots.thumbnail`.
        wave: float32 [S], the mixture.
    """

    start: int
    view: WindowView
    thumbnails: Sequence[np.ndarray]
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
    """A frame in the sizes of the model; ``key`` is None where no window has it as a key frame."""

    motion: Tensor
    key: KeyView | None
    thumbnail: np.ndarray


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
        keys = [small_frames[key].key for key in self._predictor.keys]
        view = WindowView(
            WHOLE,
            self._frame_size,
            torch.stack([frame.motion for frame in small_frames]),
            [key for key in keys if key is not None],
        )
        return Window(start, view, [frame.thumbnail for frame in small_frames], wave)

    def _shrink(self, frame: np.ndarray, is_key: bool) -> _SmallFrame:
        sizes = self._predictor.sizes
        return _SmallFrame(
            sizes.motion_of(frame, WHOLE),
            sizes.key_of(frame, WHOLE) if is_key else None,
            thumbnail(frame),
        )

    def _read_audio(self, first: int, count: int) -> np.ndarray:
        """Samples from any one on, float32 [count]; silence before the sound begins."""
        silent = max(0, -first)
        frame, skipped = divmod(first + silent, SAMPLES)
        frames = -(-(skipped + count - silent) // SAMPLES)
        wave = self._media.read_audio(frame, frames)[skipped : skipped + count - silent]
        return np.pad(wave, (silent, 0))


class CloserReader:
    """Reads the regions of second looks, from a second decoding of the recording.

    Most recordings have few people who are small, or none: the second decoding, which takes a
    twentieth of the time of a second look, begins with the first of them. In exchange windows keep
    no frames in full size.

    Args:
        predictor: in whose sizes regions are seen.
        media: the recording.
        starts: first frames of the windows, ascending; frames before 0 are the first one.
    """

    def __init__(self, predictor: WindowPredictor, media: MediaSource, starts: Sequence[int]):
        self._predictor, self._media, self._starts = predictor, media, starts
        self._again: MediaSource | None = None
        self._closing = contextlib.ExitStack()
        self._kept: dict[int, np.ndarray] = {}  # by number, frames that a later window may show
        self._end = min(starts, default=0)  # frame after the last one that was read

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._closing.close()

    def views(self, window: int, boxes: Sequence[Box]) -> list[WindowView]:
        """Views of regions of a window; windows come in order.

        Args:
            window: index of the window.
            boxes: the regions, at least one.

        Raises:
            MediaError: the recording cannot be read.
        """
        if self._again is None:
            self._again = self._closing.enter_context(self._media.reopen())
        keys = set(self._predictor.keys.tolist())
        start, length = self._starts[window], self._predictor.config.frames
        beyond = self._starts[window + 1] if window + 1 < len(self._starts) else start + length
        sizes = self._predictor.sizes
        frame_size = 0, 0
        motion: list[list[Tensor]] = [[] for _ in boxes]
        key_views: list[list[KeyView]] = [[] for _ in boxes]
        for number, frame in self._frames(start, length, beyond):
            frame_size = frame.shape[0], frame.shape[1]
            for index, box in enumerate(boxes):
                motion[index].append(sizes.motion_of(frame, box))
                if number - start in keys:
                    key_views[index].append(sizes.key_of(frame, box))
        return [
            WindowView(box, frame_size, torch.stack(grey), views)
            for box, grey, views in zip(boxes, motion, key_views, strict=True)
        ]

    def _frames(self, start: int, length: int, beyond: int) -> Iterator[tuple[int, np.ndarray]]:
        """Frames of a window by number; those from ``beyond`` on are kept for the next one."""
        assert self._again is not None
        for number in sorted(self._kept):
            if number >= start:
                yield number, self._kept[number]
        kept = {number: frame for number, frame in self._kept.items() if number >= beyond}
        # Windows without a second look are read, too: a frame that does not decode shows the one
        # before it, as it did in the first decoding.
        for number, frame in _frames(self._again, range(self._end, start + length)):
            if number >= start:
                yield number, frame
            if number >= beyond:
                kept[number] = frame
        self._kept, self._end = kept, max(self._end, start + length)


def _frames(media: MediaSource, numbers: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Frames of consecutive numbers; beyond the ends of the recording its first and last one."""
    for at in range(0, len(numbers), FRAMES_PER_READ):
        part = numbers[at : at + FRAMES_PER_READ]
        indices = [min(max(0, number), media.frames - 1) for number in part]
        frames = media.read_frames(indices[0], indices[-1] - indices[0] + 1)
        for number, index in zip(part, indices, strict=True):
            yield number, frames[index - indices[0]]
