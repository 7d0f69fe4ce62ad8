"""Audio of a media file as mono 16 kHz waveforms of segments of its timeline."""

import bisect
import contextlib
from collections.abc import Generator
from typing import NamedTuple

import av
import numpy as np
from av.error import FFmpegError

from cavmae.datasets.media.container import open_container, read_packets
from cavmae.datasets.media.downmix import (
    INVERTED,
    UPRIGHT,
    are_inverted,
    as_float,
    layout_of,
    weights_of,
)
from cavmae.datasets.media.probe import Probe
from cavmae.datasets.stream.features import SAMPLE_RATE, resample

# Context on both sides of a segment for the resampling filter.
MARGIN = 0.05  # s
# Decoding begins this long before the first segment, since codecs need a run-up. Seeking is worth
# it only for segments that begin late in the file.
RUN_UP = 2.0  # s
WORTH_SEEKING = 20.0  # s
# A chunk whose time stamp differs from the running sample count by more than this is placed by its
# stamp (a gap or an overlap); a smaller difference is rounding of the container.
JITTER = 0.02  # s


class _Chunk(NamedTuple):
    """Decoded chunk of audio.

    Attributes:
        first: number of its first sample at its own rate, from the file's origin.
        rate: Hz.
        samples: float32 [channels, samples]: both channels of stereo, otherwise the mono downmix.
        layout: FFmpeg's name of the channel layout.
    """

    first: int
    rate: int
    samples: np.ndarray
    layout: str

    @property
    def end(self) -> int:
        return self.first + self.samples.shape[1]


class _Decoded(NamedTuple):
    """Decoded frame, and its time in seconds from the file's origin; None: it has no stamp."""

    frame: av.AudioFrame
    time: float | None


class AudioReader:
    """Reads segments of a file's audio in time order, in bounded memory.

    Args:
        probe: of the file.
        downmix: ``mean``: the mean of stereo, or half the difference where one channel is the
            other's inverse; standard weights of more channels (:mod:`.downmix`). ``first``: the
            first channel, as in the CAV-MAE reference.
        start: seconds from the file's origin before which no segment begins.
        steady: segments follow each other without a gap, and whether a channel is inverted changes
            only on clear evidence. Otherwise each segment is mixed independently.

    Attributes:
        damaged: number of packets that do not decode.
        mixdown: layouts of the last segment, each with its downmix.
    """

    def __init__(
        self, probe: Probe, downmix: str = "mean", start: float = 0.0, steady: bool = False
    ):
        self._probe = probe
        self._downmix = downmix
        self._steady = steady
        self._inverted = False
        self._rate = probe.audio_rate  # of the last decoded chunk
        self._chunks: list[_Chunk] = []
        # After a restart of the clock, a time may occur twice in the file.
        seek = start > WORTH_SEEKING and len(probe.audio_offsets) == 1
        self._source = self._decode_from(start - RUN_UP if seek else None)
        self._ahead: _Decoded | None = None  # decoded, not yet placed
        self._end: int | None = None  # sample after the last one decoded, at its rate
        self.damaged = 0
        self.mixdown: tuple[str, ...] = ()

    def close(self) -> None:
        """Closes the file. Left to the garbage collector, PyAV's memory piles up (measured)."""
        self._source.close()

    def _decode_from(self, start: float | None) -> Generator[_Decoded, None, None]:
        """Decodes frames from a time on, in seconds; None: from the beginning."""
        if start is not None:
            with contextlib.closing(self._decode(start)) as frames:
                first = next(frames, None)
                time = None if first is None else first.time
                if first is not None and time is not None and time <= start + RUN_UP - MARGIN:
                    yield first
                    yield from frames
                    return
            # The container's index is wrong: it led to a place behind the segment.
        yield from self._decode(None)

    def _decode(self, start: float | None) -> Generator[_Decoded, None, None]:
        firsts = [first for first, _ in self._probe.audio_offsets]
        with open_container(self._probe.path) as container:
            audio = container.streams[self._probe.audio_stream]
            assert isinstance(audio, av.AudioStream)
            codec = audio.codec_context
            codec.thread_count = 1
            number, base = -1, None
            try:
                if start is not None and audio.time_base is not None:
                    stamp = int((start + self._probe.origin) / audio.time_base)
                    container.seek(stamp, stream=audio)
                for packet in read_packets(container, audio):
                    number += packet.size > 0
                    stretch = bisect.bisect_right(firsts, max(number, 0)) - 1
                    offset = self._probe.audio_offsets[stretch][1]
                    try:
                        for frame in codec.decode(packet if packet.size else None):
                            base = base or frame.time_base
                            if frame.pts is None or base is None:
                                yield _Decoded(frame, None)
                            else:
                                time = frame.pts * base.numerator / base.denominator
                                yield _Decoded(frame, time + offset)
                    except FFmpegError:
                        self.damaged += 1
            except (FFmpegError, OSError):
                self.damaged += 1

    def _next(self) -> _Decoded | None:
        if self._ahead is not None:
            decoded, self._ahead = self._ahead, None
            return decoded
        return next(self._source, None)

    def _beginning(self, expected: int, samples: int) -> int:
        """Place of the first chunk: directly before the second, if its own stamp is later."""
        self._ahead = self._next()
        if self._ahead is None or self._ahead.time is None:
            return expected
        after = round(self._ahead.time * self._rate)
        return after - samples if expected > after else expected

    def _jumps(self, expected: int, samples: int) -> bool:
        """Whether the audio continues at another time; a single wrong stamp does not count."""
        assert self._end is not None
        if abs(expected - self._end) <= JITTER * self._rate:
            return False
        self._ahead = self._next()
        if self._ahead is None or self._ahead.time is None:
            return False
        after = round(self._ahead.time * self._rate)
        return abs(after - (expected + samples)) <= JITTER * self._rate

    def _fill(self, first_wanted: float, until: float) -> None:
        """Decodes up to time ``until``, and keeps chunks that end after ``first_wanted``."""
        while self._end is None or self._end < until * self._rate:
            decoded = self._next()
            if decoded is None:
                return
            frame, time = decoded
            if not frame.samples:
                continue
            if frame.sample_rate != self._rate:  # some streams change their rate
                if self._end is not None:
                    self._end = round(self._end / self._rate * frame.sample_rate)
                self._rate = frame.sample_rate
            first = self._end if self._end is not None else 0
            if time is not None:
                expected = round(time * self._rate)
                if self._end is None:
                    first = self._beginning(expected, frame.samples)
                elif self._jumps(expected, frame.samples):
                    first = expected
            chunk = self._chunk(frame, first)
            self._end = chunk.end
            if chunk.end > first_wanted * self._rate:
                self._chunks.append(chunk)

    def _chunk(self, frame: av.AudioFrame, first: int) -> _Chunk:
        layout = layout_of(frame.layout.name)
        samples = as_float(frame.to_ndarray(), len(layout.channels), frame.format.is_planar)
        if self._downmix == "first":
            samples = samples[:1]
        elif len(samples) != 2:
            samples = (weights_of(layout.channels) @ samples)[None]
        return _Chunk(first, frame.sample_rate, samples, layout.name)

    def read(self, start: float, end: float) -> tuple[np.ndarray, tuple[float, float] | None]:
        """Reads the waveform of a segment. Segments are read in time order.

        Where the audio steps back in time, the earlier packets win.

        Args:
            start, end: seconds from the file's origin.

        Returns:
            float32 [samples] at 16 kHz of exactly the segment, or shorter where the file's audio
            ends before; and its span with audio, in seconds from ``start`` (None: there is none).
            Gaps before and within the audio are silence, as in a player.
        """
        self._fill(start - MARGIN, end + MARGIN)
        near = self._chunks_in(start - MARGIN, end + MARGIN)
        rates = sorted({chunk.rate for chunk in near})
        placed = {rate: self._place(rate, start - MARGIN, end + MARGIN) for rate in rates}
        margins = {rate: round(MARGIN * rate) for rate in rates}
        pairs = [stereo[:, margins[r] : -margins[r]] for r, (_, stereo) in placed.items()]
        limit = UPRIGHT if self._steady and self._inverted else INVERTED
        self._inverted = inverted = are_inverted(pairs, limit)
        inside = self._chunks_in(start, end)
        self.mixdown = tuple(dict.fromkeys(self._describe(c, inverted) for c in inside))
        waveform = np.zeros(0, dtype=np.float32)
        for rate, (single, (left, right)) in placed.items():
            mixed = single + (left - right if inverted else left + right) / np.float32(2)
            resampled = resample(mixed, rate)
            if resampled.size > waveform.size:
                waveform, resampled = resampled.copy(), waveform
            waveform[: resampled.size] += resampled
        low = max(start, min((c.first / c.rate for c in near), default=end))
        high = min(end, max((c.end / c.rate for c in near), default=start))
        self._chunks = [c for c in self._chunks if c.end > (end - MARGIN) * c.rate]
        if low >= high:
            return np.zeros(0, dtype=np.float32), None
        offset = round(MARGIN * SAMPLE_RATE)
        length = round((high - start) * SAMPLE_RATE)
        span = (max(0.0, round(low - start, 4)), round(high - start, 4))
        return waveform[offset : offset + length], span

    def _chunks_in(self, start: float, end: float) -> list[_Chunk]:
        return [c for c in self._chunks if c.first < end * c.rate and c.end > start * c.rate]

    def _place(self, rate: int, start: float, end: float) -> tuple[np.ndarray, np.ndarray]:
        """Places chunks of one rate on the timeline: mono [samples], stereo [2, samples]."""
        first, last = round(start * rate), round(end * rate)
        single = np.zeros(last - first, dtype=np.float32)
        stereo = np.zeros((2, last - first), dtype=np.float32)
        free = np.ones(last - first, dtype=bool)
        reached = 0
        for chunk in self._chunks:
            begin, until = max(chunk.first, first), min(chunk.end, last)
            if chunk.rate != rate or begin >= until:
                continue
            target = stereo if len(chunk.samples) == 2 else single[None]
            part = chunk.samples[:, begin - chunk.first : until - chunk.first]
            begin, until = begin - first, until - first
            if begin < reached:
                part = np.where(free[begin:until], part, target[:, begin:until])
            target[:, begin:until] = part
            free[begin:until] = False
            reached = max(reached, until)
        # Broken float streams hold NaN and Inf, which would spread through the resampler.
        for part in (single, stereo):
            np.nan_to_num(part, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
        return single, stereo

    def _describe(self, chunk: _Chunk, inverted: bool) -> str:
        if self._downmix == "first":
            return f"{chunk.layout}: first channel"
        if len(chunk.samples) == 2:
            return f"{chunk.layout}: {'one channel inverted' if inverted else 'mean'}"
        return chunk.layout if chunk.layout == "mono" else f"{chunk.layout}: weighted"
