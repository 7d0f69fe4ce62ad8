"""How far a long job is: a bar on a terminal, plain lines otherwise."""

import logging
import sys
import time

from tqdm import tqdm

from cavmae.common.quoting import visible

log = logging.getLogger("cavmae")
LINE_EVERY = 10.0  # s


class Progress:
    """Units done, and time left.

    Args:
        total: units of work.
        unit: what one is called.
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
        """One unit is done."""
        self._done += 1
        if self._bar is not None:
            self._bar.update()
        self.refresh()

    def status(self) -> str:
        """What is shown beside the count."""
        return ""

    def refresh(self) -> None:
        """Shows how far it is: now and then."""
        if self._bar is not None:
            self._bar.set_postfix_str(visible(self.status()), refresh=False)
            return
        if time.monotonic() - self._logged_at < LINE_EVERY:
            return
        self._logged_at = time.monotonic()
        fresh = self._done - self._before
        left = "unknown time"
        if fresh:
            left = f"{self.elapsed / fresh * (self._total - self._done) / 60:.1f} min"
        note = f", {self.status()}" if self.status() else ""
        log.info("%d of %d %ss%s, %s left", self._done, self._total, self._unit, note, left)


class ShardProgress(Progress):
    """Also tells clips a second and hours of video an hour."""

    def __init__(self, total: int, before: int):
        super().__init__(total, "input", before)
        self._clips = 0
        self._seconds = 0.0

    def add_clip(self, seconds: float) -> None:
        """A clip of this length is done."""
        self._clips += 1
        self._seconds += seconds
        self.refresh()

    def status(self) -> str:
        return (
            f"{self._clips} clips, {self._clips / self.elapsed:.1f} clips/s, "
            f"{self._seconds / self.elapsed:.1f} h of video an hour"
        )
