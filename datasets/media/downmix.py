"""Channels of any layout to one: by the usual weights, and never cancelling each other."""

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
INVERTED = -0.5  # correlation of two channels below which one is taken for the other upside down


def layout_of(layout: av.AudioLayout) -> av.AudioLayout:
    """A layout with names for its channels, the usual one where a file only counts them."""
    known = all(channel.name in WEIGHTS for channel in layout.channels)
    if known or layout.nb_channels not in USUAL:
        return layout
    return av.AudioLayout(USUAL[layout.nb_channels])


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


def mix(samples: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
    """float32 [2, samples]: the mix of all channels, and half the difference of two.

    The difference of other layouts is zero.

    Args:
        samples: float32 [channels, samples].
    """
    mixed = np.zeros((2, samples.shape[1]), dtype=np.float32)
    if len(names) == 2:
        mixed[0] = samples.sum(axis=0, dtype=np.float32) / np.float32(2)
        mixed[1] = (samples[0] - samples[1]) / np.float32(2)
    else:
        mixed[0] = weights_of(names) @ samples
    return mixed


def is_inverted(mean: np.ndarray, difference: np.ndarray) -> bool:
    """Whether two channels hold the same upside down, so that their mean cancels it.

    Args:
        mean, difference: float32 [samples], (left + right) / 2 and (left - right) / 2.
    """
    # With powers S and D of the two, the correlation is (S - D) / (S + D) for equal loudness.
    powers = float(mean @ mean), float(difference @ difference)
    return powers[0] - powers[1] < INVERTED * (powers[0] + powers[1])
