"""Downmix of any channel layout to mono, by standard weights and without cancellation."""

import functools
from collections.abc import Iterable
from typing import NamedTuple

import av
import numpy as np

SURROUND = 0.5**0.5  # -3 dB, for the centre and the surround channels (ITU-R BS.775-4)
# Weight of each channel in (left + right) / 2 of the stereo downmix, without the effects channel.
WEIGHTS = {
    "FL": 0.5, "FR": 0.5, "FC": SURROUND, "LFE": 0.0, "LFE2": 0.0,
    "FLC": 0.5, "FRC": 0.5, "BL": SURROUND / 2, "BR": SURROUND / 2, "SL": SURROUND / 2,
    "SR": SURROUND / 2, "BC": SURROUND / 2, "WL": SURROUND / 2, "WR": SURROUND / 2,
    "TFL": SURROUND / 2, "TFR": SURROUND / 2, "TBL": SURROUND / 2, "TBR": SURROUND / 2,
    "DL": 0.5, "DR": 0.5,
}  # fmt: skip
# Default layouts by number of channels, for files that name none, as in FFmpeg.
USUAL = {1: "mono", 2: "stereo", 3: "2.1", 4: "4.0", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1"}
# Correlation of two channels below which one counts as the other's inverse, and below which it
# stays so within a recording that is read from end to end.
INVERTED = -0.5
UPRIGHT = 0.0


class ChannelLayout(NamedTuple):
    """Name of a channel layout in FFmpeg, and the names of its channels in order."""

    name: str
    channels: tuple[str, ...]


@functools.cache
def layout_of(name: str) -> ChannelLayout:
    """Layout of FFmpeg's name; the default one where a file only gives a number of channels."""
    layout = av.AudioLayout(name)
    known = all(channel.name in WEIGHTS for channel in layout.channels)
    if not known and layout.nb_channels in USUAL:
        layout = av.AudioLayout(USUAL[layout.nb_channels])
    return ChannelLayout(layout.name, tuple(channel.name for channel in layout.channels))


def as_float(samples: np.ndarray, channels: int, planar: bool) -> np.ndarray:
    """Converts a decoded chunk to float32 [channels, samples] with full scale 1."""
    if not planar:
        samples = samples.reshape(-1, channels).T
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - 128) / 128
    if samples.dtype.kind == "i":
        return samples.astype(np.float32) / float(2 ** (8 * samples.dtype.itemsize - 1))
    return samples.astype(np.float32, copy=False)


def weights_of(names: tuple[str, ...]) -> np.ndarray:
    """Downmix weights float32 [channels]; equal for up to two, or for unknown, channels.

    Args:
        names: FFmpeg's names of the channels.
    """
    if len(names) <= 2 or not all(name in WEIGHTS for name in names):
        return np.full(len(names), 1 / len(names), dtype=np.float32)
    return np.array([WEIGHTS[name] for name in names], dtype=np.float32)


def are_inverted(pairs: Iterable[np.ndarray], limit: float = INVERTED) -> bool:
    """Whether one channel is the other's inverse, so that their mean would cancel.

    Args:
        pairs: waveforms float32 [2, samples] of both channels.
        limit: correlation below which channels count as inverted.
    """
    product = power = 0.0
    for left, right in pairs:
        product += float(left @ right)
        power += float(left @ left) + float(right @ right)
    return 2 * product < limit * power  # the correlation of channels that are equally loud
