"""Offset between sound and pictures of a recording, from lips and sound of its windows.

Voices that are tied to lips go wrong where sound and pictures of a recording are apart by a frame
or more. As with SyncNet (J. S. Chung, A. Zisserman, "Out of time", 2016), the offset is that at
which lips and sound agree best; here both are openings of the mouth, one read from the pictures,
the other computed from the sound (:func:`cavmae.datasets.synthetic.articulation`).
"""

import math

import numpy as np

from cavmae.datasets.media.playback import SAMPLES
from cavmae.datasets.stream.features import SAMPLE_RATE
from cavmae.datasets.stream.rates import VIDEO_RATE
from cavmae.datasets.synthetic.articulation import OPENING, at_frames, from_audio
from cavmae.datasets.synthetic.recordings import active_level

REACH = 8  # frames: larger offsets are not looked for
STEP = SAMPLE_RATE // 100  # samples to which an offset is rounded
LEAST = 3 * STEP  # samples: a frame too many costs up to 3 dB, less than this little
MOVING = 0.05  # standard deviation of openings in a window that says something
# Rendered and real people who speak in sight correlate by 0.46 or more; silent ones, musicians, and
# those whose sound is further off than the reach, by 0.35 or less over 5 s (evidence 0.5).
MIN_CORRELATION = 0.3
MIN_EVIDENCE = 0.65  # correlation times the root of the number of windows side by side
MIN_EARLY_EVIDENCE = 1.0  # before the end, since what follows could say otherwise
MIN_GAIN = 2.0  # of log likelihood over sound and pictures as they are
INDEPENDENT = 20  # openings of a window that say something of their own
FIRST_CHECK = 6  # windows before the first look, then twice as many each time


class OutOfSync(Exception):
    """Sound and pictures of a recording are apart, so that it is to be separated once more.

    Attributes:
        lead: samples at 16 kHz by which the sound is ahead of the pictures.
    """

    def __init__(self, lead: int):
        super().__init__(lead)
        self.lead = lead


class LipSync:
    """Agreement of lips and sound at each offset, over all windows so far.

    Args:
        length: frames of a window, T.
        hop: step from a window to the next, as a fraction of a window.
    """

    def __init__(self, length: int, hop: float):
        self._hop = hop
        self._reach = min(REACH, length // 4)
        self._windows = 0
        self._next_check = FIRST_CHECK
        # Sums of products of lips and sound, and of their squares, by offset.
        self._sums = np.zeros((2 * self._reach + 1, 3))

    def add(self, openings: np.ndarray, wave: np.ndarray) -> None:
        """Count a window, if lips move in it and something is heard.

        Args:
            openings: float32 [T], of the mouths of all people, added up.
            wave: float32 [T * 640], its sound.
        """
        times = (np.arange(len(openings)) + 0.5) / VIDEO_RATE
        sound = at_frames(from_audio(wave, active_level(wave)), times)[:, OPENING]
        if min(openings.std(), sound.std()) < MOVING:
            return
        self._windows += 1
        for row, lead in enumerate(range(-self._reach, self._reach + 1)):
            lips, speech = openings[max(0, lead) :], sound[max(0, -lead) :]
            count = min(len(lips), len(speech))
            lips = lips[:count] - lips[:count].mean()
            speech = speech[:count] - speech[:count].mean()
            self._sums[row] += (lips * speech).sum(), np.square(lips).sum(), np.square(speech).sum()

    def early_lead(self) -> int:
        """:meth:`lead` before the end of a recording; 0 unless it is clear and time for a look."""
        if self._windows < self._next_check:
            return 0
        self._next_check = 2 * self._windows
        return self.lead(MIN_EARLY_EVIDENCE)

    @property
    def correlations(self) -> np.ndarray:
        """Correlation of lips and sound for each lead, from the least (below 0) to the largest."""
        products, lips, sound = self._sums.T
        correlations: np.ndarray = products / np.sqrt(np.maximum(lips * sound, 1e-12))
        return correlations

    def lead(self, min_evidence: float = MIN_EVIDENCE) -> int:
        """Samples by which the sound is ahead of the pictures; 0 where that is not sure."""
        correlations = self.correlations
        best = int(correlations.argmax())
        if best in (0, 2 * self._reach):  # the true one may lie beyond
            return 0
        before, correlation, after = (float(c) for c in correlations[best - 1 : best + 2])
        # Between frames: the top of a parabola through the best offset and its neighbors.
        curvature = before - 2 * correlation + after
        between = 0.5 * (before - after) / curvature if curvature else 0.0
        lead = round((best - self._reach + between) * SAMPLES / STEP) * STEP
        windows = 1 + (self._windows - 1) * self._hop  # side by side
        as_it_is = float(correlations[self._reach])
        rests = [max(1 - c * abs(c), 1e-6) for c in (as_it_is, correlation)]  # not explained
        gain = INDEPENDENT / 2 * windows * math.log(rests[0] / rests[1])
        is_sure = (
            abs(lead) >= LEAST
            and correlation >= MIN_CORRELATION
            and correlation * math.sqrt(windows) >= min_evidence
            and gain >= MIN_GAIN
        )
        return lead if is_sure else 0
