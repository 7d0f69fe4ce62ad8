"""Messages of a worker about its input: clips written, clips skipped, signs of life."""

from collections.abc import Callable
from typing import NamedTuple


class Written(NamedTuple):
    """A clip that a worker has written to its part file.

    Attributes:
        clip: number of the clip in its input.
        start: of the clip, in seconds.
        seconds: its length.
        size: bytes in the part file.
        crc: CRC-32 of those bytes.
    """

    clip: int
    start: float
    seconds: float
    size: int
    crc: int


class Skip(NamedTuple):
    """A clip, or (``clip`` and ``start`` None) an input or the rest of one, without a sample.

    Attributes:
        clips: number of consecutive clips with the same reason.
        last: start of the last of them, in seconds.
    """

    clip: int | None
    start: float | None
    reason: str
    detail: str
    clips: int = 1
    last: float | None = None


class Alive(NamedTuple):
    """A sign of life of a worker between clips."""


Message = Written | Skip | Alive


class Reporter:
    """Reports clips in order; consecutive clips skipped for one reason become one message.

    An hour without audio would otherwise be a thousand lines of ``skipped.jsonl``.
    """

    def __init__(self, report: Callable[[Message], None]):
        self._report = report
        self._pending: Skip | None = None

    def written(self, written: Written) -> None:
        self.flush()
        self._report(written)

    def skipped(self, skip: Skip) -> None:
        before = self._pending
        if (
            before is not None
            and before.reason == skip.reason
            and before.clip is not None
            and skip.clip == before.clip + before.clips
        ):
            skip = before._replace(clips=before.clips + 1, last=skip.start)
        else:
            self.flush()
        self._pending = skip
        self.alive()

    def flush(self) -> None:
        if self._pending is not None:
            self._report(self._pending)
        self._pending = None

    def alive(self) -> None:
        self._report(Alive())
