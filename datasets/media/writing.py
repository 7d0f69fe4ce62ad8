"""Writer of MP4 files with video and audio."""

import queue
import threading
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Literal, Protocol, Self

import av
import numpy as np
import torch

from cavmae.datasets.media.planes import PACKED
from cavmae.datasets.stream.features import SAMPLE_RATE

AAC_FRAME = 1024  # samples
AAC_BITS = 96_000  # bit/s: the coding error stays far below the voices
QUEUED_FRAMES = 8  # that wait for an encoder's thread
FORMATS = {3: "rgb24", 4: "rgba"}  # by the number of channels
BLACK, WHITE = 16, 235  # luma
NO_COLOR = 128  # of both chroma planes


class Wave(Protocol):
    """Mono waveform at 16 kHz, int16 or float32, in memory or read from disk in parts."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> np.ndarray: ...


class VideoWriter:
    """Writes H.264 video and AAC audio, interleaved from time 0, to an MP4 file.

    Args:
        path: of the file.
        size: (width, height) in pixels, even numbers.
        frame_rate: Hz.
        quality: x264's CRF, or its QP.
        audio: waveform; None: the file has no audio.
        preset: of x264; faster ones make larger files.
        quality_as: ``crf``, or ``qp``: for pictures of few colors it takes three quarters of the
            time, in a smaller file.
        b_frames: code frames from later ones, too; without, `superfast` takes a third less time,
            and files are a tenth larger.
    """

    def __init__(
        self,
        path: Path,
        size: tuple[int, int],
        frame_rate: int,
        quality: float,
        audio: Wave | None,
        preset: str = "veryfast",
        b_frames: bool = True,
        quality_as: Literal["crf", "qp"] = "crf",
    ):
        self._rate = frame_rate
        # `file:` keeps FFmpeg from reading a name with a colon as a protocol.
        self._container = av.open(f"file:{path}", "w", options={"movflags": "faststart"})
        video = self._container.add_stream("libx264", rate=frame_rate)
        video.width, video.height = size
        video.pix_fmt = "yuv420p"
        # One thread writes the same bytes in any number of processes.
        video.options = {"preset": preset, quality_as: f"{quality:g}", "threads": "1"}
        if torch.backends.cpu.get_cpu_capability() == "AVX512":
            # x264 with AVX-512 sometimes gives other bytes for the same frames (measured).
            video.options = {**video.options, "x264-params": "asm=AVX2"}
        video.codec_context.thread_count = 1
        if not b_frames:
            video.codec_context.max_b_frames = 0
        self._video_stream = video
        self._audio_times: Iterator[float] = iter(())  # end of each chunk, which it encodes
        if audio is not None:
            self._audio_stream = self._container.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
            self._audio_stream.codec_context.bit_rate = AAC_BITS
            self._audio_times = self._encode_audio(audio)
        self._audio_seconds = 0.0  # seconds of audio written

    def _encode_audio(self, waveform: Wave) -> Iterator[float]:
        for first in range(0, len(waveform), AAC_FRAME):
            part = waveform[first : first + AAC_FRAME]
            chunk: np.ndarray = part[None].astype(np.float32)
            if part.dtype == np.int16:
                chunk = chunk / 32768
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(chunk), "fltp", "mono")
            frame.sample_rate = SAMPLE_RATE
            frame.time_base = Fraction(1, SAMPLE_RATE)
            frame.pts = first
            self._container.mux(self._audio_stream.encode(frame))
            yield (first + AAC_FRAME) / SAMPLE_RATE
        self._container.mux(self._audio_stream.encode(None))

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            self.close()
        else:  # after an error the rest of the audio is not encoded
            self._container.close()

    def write(self, number: int, pixels: np.ndarray) -> None:
        """Writes frame ``number``.

        Args:
            number: of the frame.
            pixels: uint8 [height, width, 3 or 4]; bool [height, width]; or uint8 [1.5 height,
                width], packed YUV of :mod:`.planes`, which needs no conversion from RGB.

        Raises:
            ValueError: a frame [height, width] is not bool.
        """
        if pixels.ndim == 2 and len(pixels) > self._video_stream.height:
            frame = av.VideoFrame.from_ndarray(pixels, PACKED)
        elif pixels.ndim == 2:
            frame = _mask_frame(pixels)
        else:
            frame = av.VideoFrame.from_ndarray(pixels, FORMATS[pixels.shape[2]])
        frame.time_base = Fraction(1, self._rate)
        frame.pts = number
        self._container.mux(self._video_stream.encode(frame))
        while self._audio_seconds < (number + 1) / self._rate:
            self._audio_seconds = next(self._audio_times, float("inf"))

    def close(self) -> None:
        """Writes all frames and audio that are still buffered, and closes the file."""
        self._container.mux(self._video_stream.encode(None))
        for _ in self._audio_times:
            pass
        self._container.close()


def _mask_frame(mask: np.ndarray) -> av.VideoFrame:
    """White and black frame as the encoder takes it; FFmpeg's own conversion takes thrice the time.

    Args:
        mask: bool [height, width], even numbers.
    """
    if mask.dtype != bool:  # the luma of other values would overflow
        raise ValueError(f"a mask is {mask.dtype}, not bool")
    height, width = mask.shape
    frame = av.VideoFrame(width, height, "yuv420p")
    luma, *chroma = frame.planes
    rows = np.frombuffer(memoryview(luma), np.uint8).reshape(height, luma.line_size)
    np.multiply(mask, np.uint8(WHITE - BLACK), out=rows[:, :width])
    rows += np.uint8(BLACK)  # with its padding
    for plane in chroma:
        np.frombuffer(memoryview(plane), np.uint8)[:] = NO_COLOR
    return frame


class ThreadedVideoWriter:
    """:class:`VideoWriter` that encodes in a thread of its own, beside the caller's work.

    Args:
        writer: of the file; nothing else may write to it or close it.
    """

    def __init__(self, writer: VideoWriter):
        self._writer = writer
        self._queue: queue.Queue[tuple[int, np.ndarray] | None] = queue.Queue(QUEUED_FRAMES)
        self._error: BaseException | None = None
        self._abandoned = False
        self._thread = threading.Thread(target=self._encode, name="video encoder")
        self._thread.start()

    def _encode(self) -> None:
        kind: type[BaseException] | None = None
        while (item := self._queue.get()) is not None:
            if self._error is not None or self._abandoned:
                continue  # the queue is emptied, so that the caller is not kept waiting
            try:
                self._writer.write(*item)
            except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
                self._error = error
        if self._error is not None or self._abandoned:
            kind = type(self._error) if self._error is not None else RuntimeError
        try:
            self._writer.__exit__(kind)
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            self._error = self._error or error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._abandoned = kind is not None
        self._queue.put(None)
        self._thread.join()
        if kind is None and self._error is not None:
            raise self._error

    def write(self, number: int, pixels: np.ndarray) -> None:
        """Hands frame ``number`` to the encoder; the caller must not alter ``pixels`` afterwards.

        Raises:
            Exception: of the encoder, at an earlier frame.
        """
        if self._error is not None:
            raise self._error
        self._queue.put((number, pixels))
