"""Conversion of decoded frames to the pixels that are stored, shown to models, or encoded again."""

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter

from cavmae.datasets.media.geometry import Geometry, fit_inside
from cavmae.datasets.media.hdr import to_sdr
from cavmae.datasets.media.planes import PACKED, pack_rgb
from cavmae.datasets.media.probe import Probe


class FrameConverter:
    """Scales frames and converts their colors.

    Args:
        probe: of the video.
        geometry: of the converted frames.
        packed: convert to packed YUV of :mod:`.planes` instead of RGB; sides are even.
    """

    def __init__(self, probe: Probe, geometry: Geometry, packed: bool = False):
        self._probe, self._geometry, self._packed = probe, geometry, packed
        self._reformatter = VideoReformatter()

    def convert(self, frame: av.VideoFrame) -> np.ndarray:
        """Converted frame: uint8 [height, width, 3], or [1.5 height, width] if it is packed."""
        if not self._packed:
            return self._convert_to_rgb(frame)
        info, size = self._probe, self._geometry.size
        is_upright = not (info.rotation or info.mirrored) and self._geometry.resized == size
        has_one_size = (frame.width, frame.height) == (info.width, info.height)
        if info.transfer or not is_upright or not has_one_size:
            return pack_rgb(self._convert_to_rgb(frame))
        return self._reformatter.reformat(
            frame, size[1], size[0], PACKED, interpolation="BILINEAR",
            dst_colorspace=Colorspace.ITU601, dst_color_range=ColorRange.MPEG,
        ).to_ndarray()  # fmt: skip

    def _convert_to_rgb(self, frame: av.VideoFrame) -> np.ndarray:
        info = self._probe
        resized = self._geometry.resized
        inside = resized
        if (frame.width, frame.height) != (info.width, info.height):
            # A stream may change its frame size; frames keep their aspect ratio.
            inside = fit_inside((frame.height, round(frame.width * info.pixel_aspect)), resized)
        kind = "rgb48le" if info.transfer else "rgb24"
        small = self._reformatter.reformat(
            frame, inside[1], inside[0], kind, interpolation="BILINEAR"
        ).to_ndarray()
        if info.transfer:
            small = to_sdr(small, info.transfer)
        if inside != resized:
            top, left = (resized[0] - inside[0]) // 2, (resized[1] - inside[1]) // 2
            whole = np.zeros((*resized, 3), dtype=np.uint8)
            whole[top : top + inside[0], left : left + inside[1]] = small
            small = whole
        return self._geometry.finish(small)
