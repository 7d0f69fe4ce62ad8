"""Video frames by presentation time, through PyAV or decord behind one protocol.

PyAV reads every file unless decord is requested. When few frames are wanted, it skips frames that
no other is predicted from, and whole groups of pictures between wanted frames.

decord takes 1.0 to 1.2 times as long as PyAV on MP4, Matroska and WebM with H.264, HEVC and VP9
(docs/benchmarks/decoders.md), so it is optional. It needs guards, each of which has a test in
tests/datasets/media/test_media.py:

- When frames are skipped, it seeks to key frames. In streams with open groups of pictures or intra
  refresh it then returns *other frames* without an error. So it is used only where all frames from
  the first on are wanted.
- It replaces a frame that does not decode by a copy of another. So copies are an error.
- It lists frames that an edit list hides, rotates frames in its own way, and its FFmpeg of 2018
  opens addresses as well as files. So it gets only absolute paths of files whose container and
  codec PyAV has identified, whose frames are not rotated and whose list of frames equals PyAV's.

Both decoders scale bilinearly with FFmpeg's swscale and agree to a fraction of a grey level.
"""

import os
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import av
import numpy as np
import torch  # noqa: F401 - decord crashes when it is imported before torch
from av.error import FFmpegError

from cavmae.datasets.media.container import MediaError, open_container, read_packets
from cavmae.datasets.media.conversion import FrameConverter
from cavmae.datasets.media.decoding import LostKeys, decode_in_order, decode_packet
from cavmae.datasets.media.geometry import Geometry
from cavmae.datasets.media.packet_plan import DROP, REFERENCES, plan_again, plan_packets
from cavmae.datasets.media.packets import NO_STAMP, stamp_of
from cavmae.datasets.media.probe import Probe

# Containers and codecs that decord reads correctly.
DECORD_CONTAINERS = frozenset({"mov", "matroska"})
DECORD_CODECS = frozenset({"h264", "hevc", "vp9"})


# Packets before the first one to decode above which seeking is worth it: a seek may fail.
WORTH_SEEKING = 250
# Frames of H.264 that are reordered at most: of a stream that does not say how many, the decoder
# may give a frame after others that follow it.
LATE = 16


class _OtherPackets(Exception):
    """Seeking leads to other packets than reading from the beginning."""


class Decoder(Protocol):
    """Decoder of one video's frames, in time order.

    The wanted frames (indices into ``Probe.frame_times``) are fixed at construction, so that a
    decoder can skip all others.
    """

    @property
    def name(self) -> str:
        """Library: ``decord`` or ``pyav``."""
        ...

    def read(self, indices: Sequence[int]) -> dict[int, np.ndarray]:
        """Reads frames, uint8 RGB [height, width, 3], by index.

        Indices do not decrease from call to call. The last one may repeat, since a frame can stay
        on screen over several clips. Frames that do not decode are left out.

        Raises:
            MediaError: ``decode_error``: this decoder cannot continue.
        """
        ...

    def close(self) -> None:
        """Closes the file. Left to the garbage collector, PyAV's memory piles up (measured)."""
        ...


class DecordDecoder:
    """Decoder through decord's VideoReader, in one thread, since parallelism is by process.

    Raises:
        MediaError: ``decode_error``: the file is unsuitable for decord, or decord lists other
            frames than PyAV.
    """

    name = "decord"

    def __init__(self, probe: Probe, geometry: Geometry, wanted: np.ndarray):
        _check_for_decord(probe, wanted)
        # read() detects copies; decord's own warning would clutter the terminal.
        os.environ.setdefault("DECORD_DUPLICATE_WARNING_THRESHOLD", "1.0")
        # Imported here so that only processes that use decord load its FFmpeg.
        import decord

        self._error = decord.DECORDError
        self._geometry = geometry
        self._before: np.ndarray | None = None
        decord.logging.set_level(decord.logging.QUIET)
        height, width = geometry.resized
        try:
            self._reader = decord.VideoReader(
                str(Path(probe.path).absolute()), ctx=decord.cpu(0), num_threads=1, width=width,
                height=height,
            )  # fmt: skip
            frames = len(self._reader)
            if frames != len(probe.frame_times):
                raise MediaError(
                    "decode_error", f"decord sees {frames} frames, not {len(probe.frame_times)}"
                )
            times = self._reader.get_frame_timestamp(np.arange(frames))[:, 0]
        except (decord.DECORDError, RuntimeError, UnicodeEncodeError) as error:
            # decord accepts only paths in UTF-8.
            raise MediaError("decode_error", f"decord: {error}") from error
        expected = probe.frame_times - probe.frame_times[0]
        if not np.allclose(times - times[0], expected, atol=2e-3):
            raise MediaError("decode_error", "decord sees other frame times")

    def read(self, indices: Sequence[int]) -> dict[int, np.ndarray]:
        if not indices:
            return {}
        try:
            batch = self._reader.get_batch(list(indices)).asnumpy()
        except (self._error, RuntimeError) as error:
            raise MediaError("decode_error", f"decord: {error}") from error
        for frame in batch:
            if self._before is not None and _same(self._before, frame):
                raise MediaError("decode_error", "decord gives the same frame twice")
            self._before = frame
        return {
            index: self._geometry.finish(frame) for index, frame in zip(indices, batch, strict=True)
        }

    def close(self) -> None:
        del self._reader


def _check_for_decord(probe: Probe, wanted: np.ndarray) -> None:
    reasons = {
        f"its container is {probe.container}": not (
            DECORD_CONTAINERS & set(probe.container.split(","))
        ),
        f"its codec is {probe.codec}": probe.codec not in DECORD_CODECS,
        "its frames are rotated or mirrored": probe.rotation or probe.mirrored,
        "it is HDR": probe.transfer,
        "its time stamps are irregular": probe.listing is not None,
        "it is cut off": probe.unused,
        "it has several video streams": probe.video_streams > 1,
        "not all its frames from the first on are wanted": (
            len(wanted) and wanted[-1] != len(wanted) - 1
        ),
    }
    for reason, holds in reasons.items():
        if holds:
            raise MediaError("decode_error", f"not for decord, --decoder pyav reads it: {reason}")


class PyAVDecoder:
    """Decoder through PyAV, in one thread, that decodes only what the wanted frames need.

    Args:
        packed: frames are packed YUV instead of RGB, as in :class:`.FrameConverter`.
    """

    name = "pyav"

    def __init__(self, probe: Probe, geometry: Geometry, wanted: np.ndarray, packed: bool = False):
        self._probe = probe
        self._converter = FrameConverter(probe, geometry, packed)
        self._wanted = frozenset(int(i) for i in wanted)
        self._index_of = {int(stamp): i for i, stamp in enumerate(probe.frame_stamps)}
        self._start(plan_packets(probe, wanted) if probe.listing is None else None)

    def close(self) -> None:
        self._output.close()

    def _start(self, plan: np.ndarray | None) -> None:
        self._plan = plan
        self._stash: dict[int, np.ndarray] = {}
        self._last = -1  # highest index that came out of the decoder
        if plan is None:
            assert self._probe.listing is not None
            self._output = self._decode_listed(self._probe.listing)
        else:
            self._output = self._decode(plan)

    def _decode_listed(
        self, listing: np.ndarray
    ) -> Generator[tuple[int, av.VideoFrame], None, None]:
        """Decodes all frames and yields the wanted ones, by their number in the listing."""
        probe = self._probe
        frames = decode_in_order(probe.path, probe.video_stream, probe.video_restarts)
        for index, (_, frame, is_good) in zip(listing.tolist(), frames, strict=False):
            self._last = max(self._last, index)
            if index in self._wanted and is_good:
                yield index, frame

    def _decode(self, plan: np.ndarray) -> Generator[tuple[int, av.VideoFrame], None, None]:
        """Decodes planned packets and yields the wanted frames, by their time stamps."""
        used = np.flatnonzero(plan != DROP)
        if used.size and used[0] > WORTH_SEEKING:
            try:
                yield from self._decode_from(plan, int(used[0]))
                return
            except _OtherPackets:
                pass  # the container's index is wrong: all packets are read
        yield from self._decode_from(plan, 0)

    def _decode_from(
        self, plan: np.ndarray, entry: int
    ) -> Generator[tuple[int, av.VideoFrame], None, None]:
        """Decodes planned packets.

        Args:
            entry: number of the packet to seek to; 0: none.

        Raises:
            _OtherPackets: seeking leads elsewhere.
        """
        with open_container(self._probe.path) as container:
            video = container.streams[self._probe.video_stream]
            assert isinstance(video, av.VideoStream)
            codec = video.codec_context
            codec.thread_count = 1
            dropping = False
            lost = LostKeys()
            try:
                for number, packet in _numbered_packets(self._probe, container, video, entry):
                    action = plan[number] if number < len(plan) else DROP
                    if action == DROP:
                        if not dropping:
                            yield from self._emit(decode_packet(codec, None), lost)
                            codec.flush_buffers()
                        dropping = True
                        continue
                    dropping = False
                    codec.skip_frame = "NONREF" if action == REFERENCES else "DEFAULT"
                    yield from self._emit(decode_packet(codec, packet, lost, packet.pts), lost)
                if not dropping:
                    yield from self._emit(decode_packet(codec, None), lost)
            except (FFmpegError, OSError) as error:
                if entry:
                    raise _OtherPackets from error
                return  # the rest of the file is unreadable: its frames are missing

    def _emit(
        self, frames: list[av.VideoFrame], lost: LostKeys
    ) -> Iterator[tuple[int, av.VideoFrame]]:
        for frame in frames:
            is_good = lost.is_intact(frame, frame.pts)
            index = None if frame.pts is None else self._index_of.get(frame.pts)
            if index is None:
                continue
            self._last = max(self._last, index)
            if index in self._wanted and is_good:
                yield index, frame

    def read(self, indices: Sequence[int]) -> dict[int, np.ndarray]:
        if not indices:
            return {}
        self._pump(indices)
        if self._plan is not None and any(i not in self._stash for i in indices):
            # Some streams do not decode from every packet that is marked as a key frame.
            again = plan_again(self._probe, self._plan, indices[0], indices[-1])
            if again is not None:
                before = {i: f for i, f in self._stash.items() if i in indices}
                self._output.close()
                self._start(again)
                self._pump(indices)
                self._stash = {**self._stash, **before}
        frames = {i: self._stash[i] for i in indices if i in self._stash}
        self._stash = {i: f for i, f in self._stash.items() if i >= indices[-1]}
        return frames

    def _pump(self, indices: Sequence[int]) -> None:
        """Decodes until frames are there; one that is absent may still come after LATE others."""
        absent = {index for index in indices if index not in self._stash}
        while absent and self._last <= indices[-1] + LATE:
            item = next(self._output, None)
            if item is None:
                return
            index, frame = item
            if index >= indices[0]:
                self._stash[index] = self._converter.convert(frame)
                absent.discard(index)


def _numbered_packets(
    probe: Probe, container: av.container.InputContainer, video: av.VideoStream, entry: int
) -> Iterator[tuple[int, av.Packet]]:
    """Yields a stream's packets with their numbers, as the probe counts them.

    Args:
        entry: number of the packet to seek to, a key frame; 0: none, from the first packet on.

    Raises:
        _OtherPackets: the packets behind the place that seeking leads to have other stamps than in
            the probe.
        FFmpegError, OSError: the place cannot be sought, or the rest of the file is unreadable.
    """
    number = 0
    if entry:
        # To the key frame before: transport streams are sought by decoding times, which are less.
        keys = np.flatnonzero(probe.packet_keys[:entry])
        stamp = int(probe.packet_pts[keys[-1]]) if keys.size else NO_STAMP
        if stamp == NO_STAMP:
            raise _OtherPackets
        container.seek(stamp, stream=video)
        number = -1  # the packet is not yet known
    for packet in read_packets(container, video):
        if not packet.size:
            continue  # the end, or an empty repeat that would flush the decoder
        if entry:
            stamp = stamp_of(packet, probe.container)
            if number < 0 and stamp == probe.packet_pts[entry]:
                number = entry
            elif number < 0:
                if stamp > probe.packet_pts[entry] and packet.is_keyframe:
                    raise _OtherPackets
                continue
            if number >= len(probe.packet_pts) or stamp != probe.packet_pts[number]:
                raise _OtherPackets
        yield number, packet
        number += 1
    if number < len(probe.packet_pts) and entry:
        raise _OtherPackets


def _same(first: np.ndarray, second: np.ndarray) -> bool:
    if not np.array_equal(first[::8, ::8], second[::8, ::8]):  # nearly always settles it
        return False
    return np.array_equal(first, second)


def open_decoder(
    probe: Probe, geometry: Geometry, wanted: np.ndarray, kind: str = "auto"
) -> Decoder:
    """Opens a decoder for the wanted frames of a video.

    Args:
        wanted: sorted indices into ``probe.frame_times``.
        kind: ``decord``; ``pyav``; or ``auto``, which is PyAV for every file.

    Raises:
        MediaError: ``decode_error``: the file is unsuitable for decord.
    """
    kinds: dict[str, Callable[[Probe, Geometry, np.ndarray], Decoder]] = {
        "auto": PyAVDecoder,
        "decord": DecordDecoder,
        "pyav": PyAVDecoder,
    }
    return kinds[kind](probe, geometry, wanted)
