"""Messages of a worker about its input: clips written or skipped, stretches, signs of life."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # it imports PyTorch, which the process that plans goes without
    from cavmae.datasets.media import Probe


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


class InputSurvey(NamedTuple):
    """Survey of a long input, which is then extracted in stretches.

    Attributes:
        info: probe of the file.
        file_state: its size in bytes and its time of change in ns.
        audio: file of the clips' audio.
        unused: lines about unused parts of the file, for the end of the input.
    """

    info: "Probe"
    file_state: tuple[int, int]
    audio: Path
    unused: tuple[Skip, ...]


class StoredClip(NamedTuple):
    """Audio of a clip in the file of a survey: 16 kHz mono, int16.

    Attributes:
        clip: number of the clip in its input.
        offset: of the first byte.
        size: bytes.
        crc: CRC-32 of those bytes.
        span: of the clip with audio, in seconds from its start; None: there is none.
        mixdown: layouts of the channels, each with its downmix.
    """

    clip: int
    offset: int
    size: int
    crc: int
    span: tuple[float, float] | None
    mixdown: tuple[str, ...]


class Stretch(NamedTuple):
    """Consecutive clips of a surveyed input, whose audio is complete: a task of its own.

    Attributes:
        number: of the stretch in its input.
        clips: that it extracts. All but the last stretch also extract the first clip of the next
            stretch, without writing it.
        is_last: of its input.
    """

    number: int
    clips: tuple[StoredClip, ...]
    is_last: bool


class Seam(NamedTuple):
    """Result of a clip that two stretches extract, which has to be the same in both."""

    result: Written | Skip


Message = Written | Skip | Alive | InputSurvey | Stretch | Seam


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
            skip = before._replace(clips=before.clips + skip.clips, last=skip.last)
        else:
            self.flush()
        self._pending = skip
        self.alive()

    def flush(self) -> None:
        """Reports the skipped clips that the next message might have joined."""
        if self._pending is not None:
            self._report(self._pending)
        self._pending = None

    def alive(self) -> None:
        self._report(Alive())

    def send(self, message: InputSurvey | Stretch | Seam) -> None:
        """Reports a message that is not about a clip of the input's own."""
        self._report(message)
