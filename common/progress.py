"""Progress of a long job: a bar on a terminal, log lines otherwise."""

import logging
import sys
import time

from tqdm import tqdm

from cavmae.common.quoting import visible

log = logging.getLogger("cavmae")
LINE_EVERY = 10.0  # s


class Progress:
    """Progress display: units done, and time left.

    Args:
        total: number of units of work.
        unit: name of a unit, singular; ``%``, with a total of 100.
        before: units done by an earlier run.
    """

    def __init__(self, total: int, unit: str, before: int = 0):
        self._total, self._before, self._unit = total, before, unit
        self._done = before
        self._started = self._logged_at = time.monotonic()
        self._bar: tqdm | None = None
        if sys.stderr.isatty():
            self._bar = tqdm(total=total, initial=before, unit=visible(unit), smoothing=0.05)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.close()

    @property
    def elapsed(self) -> float:
        return max(time.monotonic() - self._started, 1e-9)

    def done(self) -> None:
        """Counts a finished unit."""
        self._done += 1
        if self._bar is not None:
            self._bar.update()
        self.refresh()

    def status(self) -> str:
        """Text after the count; subclasses override it."""
        return ""

    def refresh(self) -> None:
        """Updates the bar, or logs a line at most every ``LINE_EVERY`` seconds."""
        if self._bar is not None:
            self._bar.set_postfix_str(visible(self.status()), refresh=False)
            return
        if time.monotonic() - self._logged_at < LINE_EVERY:
            return
        self._logged_at = time.monotonic()
        done_now = self._done - self._before
        left = "unknown time"
        if done_now:
            left = f"{self.elapsed / done_now * (self._total - self._done) / 60:.1f} min"
        status = f", {self.status()}" if self.status() else ""
        count = f"{self._done} of {self._total} {self._unit}s"
        if self._unit == "%":
            count = f"{self._done} % done"
        log.info("%s%s, %s left", count, status, left)


class ShardProgress(Progress):
    """Progress display with clips per second and hours of video per hour."""

    def __init__(self, total: int, before: int):
        super().__init__(total, "input", before)
        self._clips = 0
        self._seconds = 0.0

    def set_clips(self, clips: int, seconds: float) -> None:
        """Sets what is finished.

        Args:
            clips: their number.
            seconds: their length together.
        """
        if clips != self._clips:
            self._clips, self._seconds = clips, seconds
            self.refresh()

    def status(self) -> str:
        return (
            f"{self._clips} clips, {self._clips / self.elapsed:.1f} clips/s, "
            f"{self._seconds / self.elapsed:.1f} h of video an hour"
        )
