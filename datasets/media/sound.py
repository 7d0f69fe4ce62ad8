"""The sound of a media file as mono 16 kHz waveforms of stretches of its timeline."""

import contextlib
from collections.abc import Generator

import av
import numpy as np
from av.error import FFmpegError

from cavmae.datasets.features import SAMPLE_RATE, resample
from cavmae.datasets.media.probe import Probe, open_container

# Sound kept on both sides of a stretch while it is resampled, so that its ends are right.
MARGIN = 0.05  # s
# Decoding begins this long before the first stretch, for codecs that need a run-up, if that saves
# more than decoding from the beginning costs.
RUN_UP = 2.0  # s
WORTH_SEEKING = 20.0  # s
# Decoded chunks whose time stamps differ from the running sample count by more than this are placed
# by their stamp (a gap or an overlap); less is rounding of the container.
JITTER = 0.02  # s


class Sound:
    """Reads stretches of a file's sound in time order, in bounded memory.

    Args:
        probe: of the file.
        downmix: ``mean`` of all channels, or ``first`` channel, as the CAV-MAE reference does.
        start: seconds from the file's origin before which nothing will be read.
    """

    def __init__(self, probe: Probe, downmix: str = "mean", start: float = 0.0):
        self._probe = probe
        self._downmix = downmix
        self._rate = probe.sound_rate
        self._chunks: list[tuple[int, np.ndarray]] = []  # (first sample, float32 [samples])
        self._source = self._decode_from(start - RUN_UP if start > WORTH_SEEKING else None)
        self._ahead: av.AudioFrame | None = None  # decoded, not yet placed
        self._end = -1  # sample after the last one decoded, from the origin
        self.damaged = 0  # packets that did not decode

    def close(self) -> None:
        """Closes the file. Left to the garbage collector, PyAV's memory piles up (measured)."""
        self._source.close()

    def _decode_from(self, start: float | None) -> Generator[av.AudioFrame, None, None]:
        """Frames from a time on, in seconds; None: from the beginning."""
        if start is not None:
            with contextlib.closing(self._decode(start)) as frames:
                first = next(frames, None)
                found = None if first is None else self._time_of(first)
                if first is not None and found is not None and found <= start + RUN_UP - MARGIN:
                    yield first
                    yield from frames
                    return
            # The container's index was wrong: what is wanted lies before the place it led to.
        yield from self._decode(None)

    def _decode(self, start: float | None) -> Generator[av.AudioFrame, None, None]:
        with open_container(self._probe.path) as container:
            audio = container.streams.audio[0]
            codec = audio.codec_context
            codec.thread_count = 1
            try:
                if start is not None and audio.time_base is not None:
                    stamp = int((start + self._probe.origin) / audio.time_base)
                    container.seek(stamp, stream=audio)
                for packet in container.demux(audio):
                    try:
                        yield from codec.decode(packet if packet.size else None)
                    except FFmpegError:
                        self.damaged += 1
            except (FFmpegError, OSError):
                self.damaged += 1

    def _time_of(self, frame: av.AudioFrame) -> float | None:
        if frame.pts is None or frame.time_base is None:
            return None
        return float(frame.pts * frame.time_base) - self._probe.origin

    def _mono(self, frame: av.AudioFrame) -> np.ndarray:
        samples = frame.to_ndarray()
        channels = frame.layout.nb_channels
        if not frame.format.is_planar:
            samples = samples.reshape(-1, channels).T
        samples = samples[:1] if self._downmix == "first" else samples
        if samples.dtype == np.uint8:
            samples = (samples.astype(np.float32) - 128) / 128
        elif samples.dtype.kind == "i":
            samples = samples.astype(np.float32) / float(2 ** (8 * samples.dtype.itemsize - 1))
        mono: np.ndarray = samples.sum(axis=0, dtype=np.float32) / np.float32(len(samples))
        return mono

    def _next(self) -> av.AudioFrame | None:
        if self._ahead is not None:
            frame, self._ahead = self._ahead, None
            return frame
        return next(self._source, None)

    def _jumps(self, expected: int, samples: int) -> bool:
        """Whether the sound goes on at another place; one wrong time stamp alone does not count."""
        if abs(expected - self._end) <= JITTER * self._rate:
            return False
        self._ahead = self._next()
        stamp = None if self._ahead is None else self._time_of(self._ahead)
        if stamp is None:
            return False
        return abs(stamp * self._rate - (expected + samples)) <= JITTER * self._rate

    def _fill(self, first_wanted: int, until: int) -> None:
        while self._end < until:
            frame = self._next()
            if frame is None:
                return
            if not frame.samples:
                continue
            mono = self._mono(frame)
            if frame.sample_rate != self._rate:  # some streams change their rate on the way
                mono = resample(mono, frame.sample_rate, self._rate)
            first = self._end
            stamp = self._time_of(frame)
            if stamp is not None:
                expected = round(stamp * self._rate)
                if self._end < 0 or self._jumps(expected, len(mono)):
                    first = expected
            elif self._end < 0:
                first = 0
            self._end = first + len(mono)
            if self._end > first_wanted:
                self._chunks.append((first, mono))

    def read(self, start: float, end: float) -> tuple[np.ndarray, tuple[float, float] | None]:
        """Waveform of a stretch, later than all stretches read before.

        Args:
            start, end: seconds from the file's origin.

        Returns:
            float32 [samples] at 16 kHz of exactly the stretch, or shorter where the file's sound
            ends before; and the part of it, in seconds from ``start``, for which there is sound
            (None: nowhere). Gaps before and between sound are silence, as a player plays them.
        """
        rate = self._rate
        first = round((start - MARGIN) * rate)
        last = round((end + MARGIN) * rate)
        self._fill(first, last)
        buffer = np.zeros(last - first, dtype=np.float32)
        sound_first, sound_last = last, first
        for begin, samples in self._chunks:
            low, high = max(begin, first), min(begin + len(samples), last)
            if low < high:
                buffer[low - first : high - first] = samples[low - begin : high - begin]
                sound_first, sound_last = min(sound_first, low), max(sound_last, high)
        keep = round((end - MARGIN) * rate)
        self._chunks = [c for c in self._chunks if c[0] + len(c[1]) > keep]
        low, high = max(sound_first, round(start * rate)), min(sound_last, round(end * rate))
        if low >= high:
            return np.zeros(0, dtype=np.float32), None
        # Broken float streams hold NaN and Inf; they must not spread through the resampler.
        waveform = resample(np.nan_to_num(buffer, nan=0.0, posinf=0.0, neginf=0.0), rate)
        offset = round(MARGIN * SAMPLE_RATE)
        length = round((min(end, high / rate) - start) * SAMPLE_RATE)
        span = (low / rate - start, high / rate - start)
        return waveform[offset : offset + length], (max(0.0, round(span[0], 4)), round(span[1], 4))
