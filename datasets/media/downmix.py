"""Channels of any layout to one: by the usual weights, and never cancelling each other."""

import functools
from collections.abc import Iterable
from typing import NamedTuple

import av
import numpy as np

SURROUND = 0.5**0.5  # -3 dB, for the centre and the surround channels (ITU-R BS.775-4)
# Share of each channel in (left + right) / 2 of the stereo downmix, without the effects channel.
WEIGHTS = {
    "FL": 0.5, "FR": 0.5, "FC": SURROUND, "LFE": 0.0, "LFE2": 0.0,
    "FLC": 0.5, "FRC": 0.5, "BL": SURROUND / 2, "BR": SURROUND / 2, "SL": SURROUND / 2,
    "SR": SURROUND / 2, "BC": SURROUND / 2, "WL": SURROUND / 2, "WR": SURROUND / 2,
    "TFL": SURROUND / 2, "TFR": SURROUND / 2, "TBL": SURROUND / 2, "TBR": SURROUND / 2,
    "DL": 0.5, "DR": 0.5,
}  # fmt: skip
# Layouts of so many channels where a file names none, as FFmpeg guesses them.
USUAL = {1: "mono", 2: "stereo", 3: "2.1", 4: "4.0", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1"}
INVERTED = -0.5  # correlation of two channels below which one is taken for the other upside down,
UPRIGHT = 0.0  # and below which it stays so within a recording that is read from end to end


class ChannelLayout(NamedTuple):
    """FFmpeg's name of a channel layout, and the names of its channels in order."""

    name: str
    channels: tuple[str, ...]


@functools.cache
def layout_of(name: str) -> ChannelLayout:
    """A layout by FFmpeg's name, the usual one where a file only counts its channels."""
    layout = av.AudioLayout(name)
    known = all(channel.name in WEIGHTS for channel in layout.channels)
    if not known and layout.nb_channels in USUAL:
        layout = av.AudioLayout(USUAL[layout.nb_channels])
    return ChannelLayout(layout.name, tuple(channel.name for channel in layout.channels))


def as_float(samples: np.ndarray, channels: int, planar: bool) -> np.ndarray:
    """float32 [channels, samples], full scale 1, of a decoded chunk."""
    if not planar:
        samples = samples.reshape(-1, channels).T
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - 128) / 128
    if samples.dtype.kind == "i":
        return samples.astype(np.float32) / float(2 ** (8 * samples.dtype.itemsize - 1))
    return samples.astype(np.float32, copy=False)


def weights_of(names: tuple[str, ...]) -> np.ndarray:
    """float32 [channels], the share of each channel: the mean of up to two, or of unknown ones.

    Args:
        names: of the channels, as FFmpeg has them.
    """
    if len(names) <= 2 or not all(name in WEIGHTS for name in names):
        return np.full(len(names), 1 / len(names), dtype=np.float32)
    return np.array([WEIGHTS[name] for name in names], dtype=np.float32)


def are_inverted(pairs: Iterable[np.ndarray], limit: float = INVERTED) -> bool:
    """Whether two channels hold the same upside down, so that their mean cancels it.

    Args:
        pairs: float32 [2, samples] of both channels.
        limit: correlation below which they do.
    """
    product = power = 0.0
    for left, right in pairs:
        product += float(left @ right)
        power += float(left @ left) + float(right @ right)
    return 2 * product < limit * power  # the correlation of channels that are equally loud
