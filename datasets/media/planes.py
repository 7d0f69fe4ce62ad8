"""Frames as planes of YUV 4:2:0, in which H.264 codes them: BT.601, limited range.

A packed frame (NV12) is uint8 [1.5 h, w]: h rows of luma, then h / 2 rows of pairs of chroma. Both
sides are even.
"""

import av
import numpy as np

PACKED = "nv12"  # FFmpeg's name
RGB_TO_YUV = np.array(
    [[65.481, 128.553, 24.966], [-37.797, -74.203, 112.0], [112.0, -93.786, -18.214]]
)  # of values 0 to 1, ITU-R BT.601
OFFSETS = np.array([16.0, 128.0, 128.0])


def yuv_of(rgb: np.ndarray) -> np.ndarray:
    """Y, U and V of colors: uint8 [..., 3] -> uint8 [..., 3]."""
    return np.rint(rgb / 255 @ RGB_TO_YUV.T + OFFSETS).astype(np.uint8)


def planes_of(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Views of the luma [h, w] and the chroma [h / 2, w], in pairs, of a packed frame."""
    height = packed.shape[0] * 2 // 3
    return packed[:height], packed[height:]


def pack_rgb(rgb: np.ndarray) -> np.ndarray:
    """Packed frame of uint8 RGB [h, w, 3]."""
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb))
    return frame.reformat(format=PACKED).to_ndarray()
