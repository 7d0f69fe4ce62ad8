"""Windows of a recording, one after the other."""

from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cavmae.datasets.media.playback import SAMPLES
from cavmae.finetune.inference.predictor import WindowPredictor
from cavmae.finetune.inference.sources import MediaSource


class Window(NamedTuple):
    """Part of a recording that the model sees at once.

    Attributes:
        start: first frame.
        frames: uint8 [h, w, 3] each, T of them.
        motion: uint8 [T, h', w'], grey frames of :meth:`WindowPredictor.motion`.
        wave: float32 [S], the mixture.
    """

    start: int
    frames: Sequence[np.ndarray]
    motion: Tensor
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
        predictor: whose grey frames are made.
        media: the recording, from its beginning.
        starts: first frames of the windows, ascending; frames before 0 are the first one.
        sound_lead: samples by which the sound is ahead of the pictures; fewer than a window has.
        ahead: whether another thread reads the next window meanwhile, so that the frames of one
            more (130 MB at 1280x720) are in memory.

    Raises:
        MediaError: the recording cannot be read.
    """
    reader = _Reader(predictor, media, sound_lead)
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


class _Reader:
    """Reads windows, and makes the grey frame of each frame once."""

    def __init__(self, predictor: WindowPredictor, media: MediaSource, sound_lead: int):
        self._predictor, self._media, self._sound_lead = predictor, media, sound_lead
        self._end = -predictor.config.frames  # frame after the last window
        self._motion = torch.zeros(0)  # of the last window

    def read(self, start: int) -> Window:
        length = self._predictor.config.frames
        wave = self._read_audio(start * SAMPLES - self._sound_lead, length * SAMPLES)
        held = max(0, -start)  # frames before the first
        frames = self._media.read_frames(start + held, length - held)
        frames = [frames[0]] * held + list(frames)
        known = max(0, self._end - start)  # of the last window, at its end
        fresh = self._predictor.motion(frames[known:])
        motion = torch.cat([self._motion[length - known :], fresh]) if known else fresh
        self._end, self._motion = start + length, motion
        return Window(start, frames, motion, wave)

    def _read_audio(self, first: int, count: int) -> np.ndarray:
        """Samples from any one on, float32 [count]; silence before the sound begins."""
        silent = max(0, -first)
        frame, skipped = divmod(first + silent, SAMPLES)
        frames = -(-(skipped + count - silent) // SAMPLES)
        wave = self._media.read_audio(frame, frames)[skipped : skipped + count - silent]
        return np.pad(wave, (silent, 0))
