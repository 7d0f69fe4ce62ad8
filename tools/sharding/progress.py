"""How far a long job is: a bar on a terminal, plain lines otherwise."""

import logging
import sys
import time

from tqdm import tqdm

log = logging.getLogger("cavmae")
LINE_EVERY = 10.0  # s


class ShardProgress:
    """Inputs done, clips a second, hours of video an hour, time left.

    Args:
        total: inputs in the plan.
        done: of them before this run.
    """

    def __init__(self, total: int, done: int):
        self._total, self._before = total, done
        self._inputs = done
        self._clips = 0
        self._seconds = 0.0
        self._started = self._told = time.monotonic()
        self._bar = None
        if sys.stderr.isatty():
            self._bar = tqdm(total=total, initial=done, unit="input", smoothing=0.05)

    def clip(self, seconds: float) -> None:
        self._clips += 1
        self._seconds += seconds
        self._tell()

    def input_done(self) -> None:
        self._inputs += 1
        if self._bar is not None:
            self._bar.update()
        self._tell()

    def rates(self) -> str:
        elapsed = max(time.monotonic() - self._started, 1e-9)
        return (
            f"{self._clips} clips, {self._clips / elapsed:.1f} clips/s, "
            f"{self._seconds / elapsed:.1f} h of video an hour"
        )

    def _tell(self) -> None:
        if self._bar is not None:
            self._bar.set_postfix_str(self.rates(), refresh=False)
            return
        now = time.monotonic()
        if now - self._told >= LINE_EVERY:
            self._told = now
            done = self._inputs - self._before
            left = (now - self._started) / done * (self._total - self._inputs) if done else None
            log.info(
                "%d of %d inputs, %s, %s left",
                self._inputs,
                self._total,
                self.rates(),
                "unknown time" if left is None else f"{left / 60:.0f} min",
            )

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
