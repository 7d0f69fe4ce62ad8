"""Frames by presentation time, through decord or PyAV behind one small protocol.

decord reads consecutive frames a little faster, but it must be watched (each of this is a test in
tests/datasets/test_media.py):

- When frames are passed over it jumps to key frames, and in streams with open groups of pictures or
  intra refresh it then gives *other frames* without a word. So it is used only where every frame
  from the first on is wanted.
- A frame it cannot decode it replaces by a copy of another; of some MPEG-1 files all frames are
  copies of one. So copies are looked for, and PyAV reads again where there are any.
- It lists frames that an edit list hides and turns pictures in a way of its own; some codecs it
  cannot open. So its list of frames must be the container's, and turned videos are not for it.

PyAV reads everything else. When few frames are wanted it is also the faster one: it is told to pass
over frames that no other is predicted from, and whole groups of pictures between wanted frames.
Both scale bilinearly with FFmpeg's swscale and agree to a fraction of a grey level.
"""

import os
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Protocol

import av
import numpy as np
import torch  # noqa: F401 - decord crashes when it is imported before torch
from av.error import FFmpegError
from av.video.reformatter import VideoReformatter

from cavmae.datasets.media.geometry import Geometry
from cavmae.datasets.media.probe import MediaError, Probe, first_video, open_container

_FULL, _REFERENCES, _DROP = 0, 1, 2


class Decoder(Protocol):
    """Gives frames of one video, in time order.

    ``wanted`` (indices into ``Probe.frame_times``) is fixed when a decoder is made, so that it can
    pass over everything else.
    """

    @property
    def name(self) -> str:
        """Which library reads: ``decord`` or ``pyav``."""
        ...

    def read(self, indices: Sequence[int]) -> dict[int, np.ndarray]:
        """Frames uint8 RGB [height, width, 3] of these indices, none before those read already.

        The last one read may be asked for again: a picture can stay on screen over several clips.

        Frames that cannot be decoded are left out.

        Raises:
            MediaError: ``decode_error`` when this decoder cannot go on.
        """
        ...

    def close(self) -> None:
        """Closes the file. Left to the garbage collector, PyAV's memory piles up (measured)."""
        ...


class DecordDecoder:
    """decord's VideoReader; one thread, since parallelism is by process.

    Raises:
        MediaError: ``decode_error`` if decord cannot open the file or sees other frames in it.
    """

    name = "decord"

    def __init__(self, probe: Probe, geometry: Geometry, wanted: np.ndarray):
        if probe.rotation:
            raise MediaError("decode_error", "decord turns pictures in a way of its own")
        # Copies are looked for below; decord's own warning would go to the user's screen.
        os.environ.setdefault("DECORD_DUPLICATE_WARNING_THRESHOLD", "1.0")
        # Not at module level: its FFmpeg is loaded only by processes that read with it.
        import decord

        self._error = decord.DECORDError
        self._geometry = geometry
        self._before: np.ndarray | None = None
        decord.logging.set_level(decord.logging.QUIET)
        height, width = geometry.resized
        try:
            self._reader = decord.VideoReader(
                probe.path, ctx=decord.cpu(0), num_threads=1, width=width, height=height
            )
            frames = len(self._reader)
            if frames != len(probe.frame_times):
                raise MediaError(
                    "decode_error", f"decord sees {frames} frames, not {len(probe.frame_times)}"
                )
            times = self._reader.get_frame_timestamp(np.arange(frames))[:, 0]
        except (decord.DECORDError, RuntimeError, UnicodeEncodeError) as error:
            # It takes no path that is not UTF-8.
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
        for picture in batch:
            if self._before is not None and _same(self._before, picture):
                raise MediaError("decode_error", "decord gives the same picture twice")
            self._before = picture
        return {
            index: self._geometry.finish(picture)
            for index, picture in zip(indices, batch, strict=True)
        }

    def close(self) -> None:
        del self._reader


class PyAVDecoder:
    """PyAV, one thread, decoding no more than the wanted frames need."""

    name = "pyav"

    def __init__(self, probe: Probe, geometry: Geometry, wanted: np.ndarray):
        self._probe = probe
        self._geometry = geometry
        self._wanted = frozenset(int(i) for i in wanted)
        self._reformatter = VideoReformatter()
        self._index_of: dict[int, int] | None = None
        if probe.timestamps_trusted:
            self._index_of = {int(stamp): i for i, stamp in enumerate(probe.frame_stamps)}
        self._plan = self._plan_packets() if self._index_of is not None else None
        self._start(self._plan)

    def close(self) -> None:
        self._output.close()

    def _start(self, plan: np.ndarray | None) -> None:
        self._stash: dict[int, np.ndarray] = {}
        self._last = -1  # highest index that came out of the decoder
        self._output = self._decode(plan)

    def _plan_packets(self) -> np.ndarray:
        """What to do with each packet: decode, decode only if a reference, or drop."""
        assert self._index_of is not None
        stamps, keys = self._probe.packet_pts, self._probe.packet_keys
        wanted_stamps = {stamp for stamp, i in self._index_of.items() if i in self._wanted}
        wanted = np.fromiter((int(s) in wanted_stamps for s in stamps), bool, len(stamps))
        starts = np.flatnonzero(keys)
        if starts.size == 0 or starts[0] != 0:
            starts = np.concatenate([[0], starts])
        group = np.searchsorted(starts, np.arange(len(stamps)), side="right") - 1
        needed = np.zeros(len(starts), dtype=bool)
        last = np.full(len(starts), -1)  # last packet needed of each group
        for packet in np.flatnonzero(wanted):
            number = group[packet]
            needed[number] = True
            last[number] = packet
            # A frame shown before its group's key frame is predicted from the group before.
            if stamps[packet] < stamps[starts[number]] and number:
                needed[number - 1] = True
                last[number - 1] = starts[number] - 1
        used = needed[group] & (np.arange(len(stamps)) <= last[group])
        return np.where(wanted, _FULL, np.where(used, _REFERENCES, _DROP))

    def _decode(self, plan: np.ndarray | None) -> Generator[tuple[int, av.VideoFrame], None, None]:
        with open_container(self._probe.path) as container:
            video = first_video(container)
            codec = video.codec_context
            codec.thread_count = 1
            number = -1
            fed = given = 0
            dropping = False
            try:
                for packet in container.demux(video):
                    if packet.pts is None and packet.dts is None:
                        if packet.size:
                            continue  # cannot be placed; the probe left it out too
                        break  # the end
                    if not packet.size:
                        continue  # would be taken for the end by the decoder
                    number += 1
                    action = _FULL
                    if plan is not None:
                        action = plan[number] if number < len(plan) else _DROP
                    if action == _DROP:
                        if not dropping:
                            yield from self._emit(_decode_packet(codec, None))
                            codec.flush_buffers()
                        dropping = True
                        continue
                    dropping = False
                    codec.skip_frame = "NONREF" if action == _REFERENCES else "DEFAULT"
                    frames = _decode_packet(codec, packet)
                    fed, given = fed + 1, given + len(frames)
                    if plan is None and fed - given > codec.reorder_depth:
                        # A frame was lost. Without time stamps all later ones would be taken for
                        # their neighbours, out of step with the sound: they count as missing.
                        return
                    yield from self._emit(frames)
                if not dropping:
                    yield from self._emit(_decode_packet(codec, None))
            except (FFmpegError, OSError):
                return  # the rest of the file cannot be read: those frames are missing

    def _emit(self, frames: list[av.VideoFrame]) -> Iterator[tuple[int, av.VideoFrame]]:
        for frame in frames:
            if self._index_of is None:
                index = self._last + 1  # no usable time stamps: frames in the order they come
            elif frame.pts is None or frame.pts not in self._index_of:
                continue
            else:
                index = self._index_of[frame.pts]
            self._last = max(self._last, index)
            if index in self._wanted and not frame.is_corrupt:
                yield index, frame

    def read(self, indices: Sequence[int]) -> dict[int, np.ndarray]:
        if not indices:
            return {}
        self._pump(indices[-1])
        if self._plan is not None and any(i not in self._stash for i in indices):
            # Some streams cannot be entered at every packet marked as a key frame.
            before = {i: f for i, f in self._stash.items() if i in indices}
            self._output.close()
            self._start(self._plan_again(indices))
            self._pump(indices[-1], keep_from=indices[0])
            self._stash = {**self._stash, **before}
        found = {i: self._stash[i] for i in indices if i in self._stash}
        self._stash = {i: f for i, f in self._stash.items() if i >= indices[-1]}
        return found

    def _plan_again(self, indices: Sequence[int]) -> np.ndarray:
        """The plan for the rest, entered two key frames early and decoding all up to the last."""
        assert self._plan is not None
        stamps = self._probe.frame_stamps[[indices[0], indices[-1]]]
        first, last = (int(np.flatnonzero(self._probe.packet_pts == t)[0]) for t in stamps)
        keys = np.flatnonzero(self._probe.packet_keys[: first + 1])
        entry = int(keys[-3]) if len(keys) > 2 else 0
        plan = self._plan.copy()
        plan[:entry] = _DROP
        plan[entry : last + 1] = _FULL
        return plan

    def _pump(self, until: int, keep_from: int = 0) -> None:
        while until not in self._stash and self._last <= until:
            item = next(self._output, None)
            if item is None:
                return
            index, frame = item
            if index >= keep_from:
                self._stash[index] = self._convert(frame)

    def _convert(self, frame: av.VideoFrame) -> np.ndarray:
        height, width = self._geometry.resized
        small = self._reformatter.reformat(frame, width, height, "rgb24", interpolation="BILINEAR")
        return self._geometry.finish(small.to_ndarray())


class AutoDecoder:
    """decord where it can be trusted; PyAV from the first frame on that it cannot give."""

    def __init__(self, probe: Probe, geometry: Geometry, wanted: np.ndarray):
        self._arguments = probe, geometry
        self._wanted = wanted
        self._decoder: Decoder
        consecutive = len(wanted) > 0 and wanted[-1] == len(wanted) - 1
        if consecutive and probe.timestamps_trusted and not probe.truncated:
            try:
                self._decoder = DecordDecoder(probe, geometry, wanted)
                return
            except MediaError:
                pass  # the name that is stored with each sample tells
        self._decoder = PyAVDecoder(probe, geometry, wanted)

    @property
    def name(self) -> str:
        return self._decoder.name

    def read(self, indices: Sequence[int]) -> dict[int, np.ndarray]:
        try:
            return self._decoder.read(indices)
        except MediaError:
            if isinstance(self._decoder, PyAVDecoder):
                raise
            self._decoder.close()
            later = self._wanted[self._wanted >= indices[0]]
            self._decoder = PyAVDecoder(*self._arguments, later)
            return self._decoder.read(indices)

    def close(self) -> None:
        self._decoder.close()


def _same(first: np.ndarray, second: np.ndarray) -> bool:
    if not np.array_equal(first[::8, ::8], second[::8, ::8]):  # nearly always settles it
        return False
    return np.array_equal(first, second)


def _decode_packet(codec: av.VideoCodecContext, packet: av.Packet | None) -> list[av.VideoFrame]:
    try:
        return list(codec.decode(packet))
    except FFmpegError:
        return []  # a damaged packet costs its own frames


def open_decoder(
    probe: Probe, geometry: Geometry, wanted: np.ndarray, kind: str = "auto"
) -> Decoder:
    """A decoder for the wanted frames of a video.

    Args:
        wanted: sorted indices into ``probe.frame_times``.
        kind: ``decord``, ``pyav``, or ``auto``: decord if all frames from the first on are wanted
            and it lists them rightly, otherwise PyAV.

    Raises:
        MediaError: ``decode_error``.
    """
    kinds: dict[str, Callable[[Probe, Geometry, np.ndarray], Decoder]] = {
        "auto": AutoDecoder,
        "decord": DecordDecoder,
        "pyav": PyAVDecoder,
    }
    return kinds[kind](probe, geometry, wanted)
