"""Tone mapping of HDR frames to SDR.

The transfer functions are those of ITU-R BT.2100-2; the primaries go from BT.2020 to BT.709
(BT.2087-0). Luminances are relative to 203 cd/m2, the white of SDR programmes in HDR signals
(BT.2408-7). Up to :data:`KNEE` they stay; above it they are compressed by a curve that goes on with
the same slope and puts :data:`PEAK` at white.
"""

import functools

import numpy as np

WHITE = 203.0  # cd/m2 of SDR white
PEAK = 1000.0 / WHITE  # luminance relative to SDR white above which signals clip
KNEE = 0.5
SYSTEM_GAMMA = 1.2  # of HLG on a screen of 1000 cd/m2
BT2020_TO_BT709 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]],
    dtype=np.float32,
)
LUMA_BT2020 = np.array([0.2627, 0.6780, 0.0593], dtype=np.float32)
LEVELS = 4096  # of a component: 12 bits, as many as any HDR video has


@functools.cache
def _to_linear(transfer: str) -> np.ndarray:
    """Linear light float32 [LEVELS] of each level: PQ: relative to SDR white, HLG: of the scene."""
    signal = np.arange(LEVELS) / (LEVELS - 1)
    if transfer == "pq":
        m1, m2, c1, c2, c3 = 0.1593017578125, 78.84375, 0.8359375, 18.8515625, 18.6875
        power = signal ** (1 / m2)
        light = 10_000 / WHITE * (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1)
    else:
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        light = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
    return light.astype(np.float32)


def to_sdr(frame: np.ndarray, transfer: str) -> np.ndarray:
    """Converts an HDR frame to SDR: uint8 RGB [height, width, 3].

    Args:
        frame: uint16 RGB [height, width, 3], BT.2020 primaries.
        transfer: ``pq`` or ``hlg``.
    """
    light = _to_linear(transfer)[frame >> 4]
    if transfer == "hlg":
        scene = light @ LUMA_BT2020
        light = light * (PEAK * np.maximum(scene, 1e-6) ** (SYSTEM_GAMMA - 1))[..., None]
    luma = np.maximum(light @ LUMA_BT2020, 1e-6)
    light = light * (_compress(luma) / luma)[..., None]
    rgb = np.clip(light @ BT2020_TO_BT709.T, 0, 1)
    return np.rint(255 * rgb ** (1 / 2.4)).astype(np.uint8)


def _compress(luma: np.ndarray) -> np.ndarray:
    above = np.clip((luma - KNEE) / (PEAK - KNEE), 0, 1)
    bend = (1 - KNEE) / (PEAK - 1)  # where both slopes meet
    compressed: np.ndarray = KNEE + (1 - KNEE) * above * (1 + bend) / (above + bend)
    return np.where(luma <= KNEE, luma, compressed)
