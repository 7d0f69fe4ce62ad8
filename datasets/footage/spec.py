"""Footage specs: descriptions of long recordings, and the list of them.

A spec determines its recording: composing it twice gives the same pixels and samples.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from cavmae.common.errors import CavmaeError, UsageError
from cavmae.common.files import write_atomically
from cavmae.common.json_files import REMEDY, json_bytes, read_records, typed, value_as
from cavmae.common.settings import SeedSettings
from cavmae.datasets.stream.rates import VIDEO_RATE

LIST_SCHEMA = 1
LIST_LIMIT_BYTES = 64 << 20

Size = tuple[int, int]  # height, width
FootageKind = Literal["plain", "return", "cut", "inset", "portrait"]
KINDS: tuple[FootageKind, ...] = get_args(FootageKind)


@dataclasses.dataclass(frozen=True)
class FootageSettings(SeedSettings):
    """Distribution of recordings.

    Args:
        count: recordings of each kind.
        kinds: ``plain``: two people stay; ``return``: one of two leaves the frame for seconds and
            comes back; ``cut``: hard cuts between shots of one or two people, who come back in
            later shots; ``inset``: a small picture in a corner over another scene that changes;
            ``portrait``: a picture of 9:16, with a small shake or a slow pan.
        height: shorter side of the picture in pixels, even; the longer one is 16/9 of it.
        min_seconds: shortest recording.
        max_seconds: longest recording.
        min_shot_seconds: shortest shot of ``cut`` and ``inset``.
        max_shot_seconds: longest shot of ``cut`` and ``inset``.
        min_absence_seconds: shortest absence in ``return``.
        max_absence_seconds: longest absence in ``return``.
        silent_prob: probability that one person of several is silent: their lips move without a
            voice.
        snr_db: largest absolute level of every other voice relative to the first, uniform.
    """

    count: int = 10
    kinds: tuple[FootageKind, ...] = KINDS
    height: int = 360
    min_seconds: float = 15.0
    max_seconds: float = 20.0
    min_shot_seconds: float = 2.0
    max_shot_seconds: float = 5.0
    min_absence_seconds: float = 3.0
    max_absence_seconds: float = 7.0
    silent_prob: float = 0.2
    snr_db: float = 5.0

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UsageError(f"--count {self.count}: at least 1.")
        if not self.kinds or len(set(self.kinds)) < len(self.kinds):
            raise UsageError(f"--kinds {list(self.kinds)}: name each kind once, and at least one.")
        if self.height < 32 or self.height % 2:
            raise UsageError(f"--height {self.height}: an even number of at least 32 pixels.")
        if not 0 <= self.silent_prob <= 1:
            raise UsageError(f"--silent-prob {self.silent_prob} is not from 0 to 1.")
        if self.snr_db < 0:
            raise UsageError(f"--snr-db {self.snr_db} cannot be negative.")
        for name in ("", "shot_", "absence_"):
            least, most = (getattr(self, f"{end}_{name}seconds") for end in ("min", "max"))
            if not 1 / VIDEO_RATE <= least <= most:
                option = f"--min-{name}seconds".replace("_", "-")
                raise UsageError(
                    f"{option} {least:g} is not from {1 / VIDEO_RATE} to {most:g}, "
                    f"--max-{name.replace('_', '-')}seconds."
                )
        if "return" in self.kinds and self.min_seconds < 2 * self.max_absence_seconds:
            raise UsageError(
                f"--min-seconds {self.min_seconds:g} is less than twice --max-absence-seconds "
                f"{self.max_absence_seconds:g}: the person who leaves would hardly be seen."
            )

    @property
    def size(self) -> Size:
        """(height, width) of a picture of 16:9 in pixels, even numbers."""
        return self.height, round(self.height * 16 / 9 / 2) * 2


@dataclasses.dataclass(frozen=True)
class Talker:
    """A person of a recording, who plays one clip over and over.

    The clip's audio and video stay in step, whatever the shot. The clip begins anew at its end, so
    clips that last as long as the recordings have no joint.

    Attributes:
        clip: key of the clip.
        offset: position in the clip at the beginning of the recording, in seconds.
        level_db: of the voice; None: it is not audible.
        active: (start, end) of the spans in which the voice is audible, in seconds: those in which
            the person is in the frame.
    """

    clip: str
    offset: float
    level_db: float | None
    active: tuple[tuple[float, float], ...]


@dataclasses.dataclass(frozen=True)
class PlacedTalker:
    """A person in a shot.

    Attributes:
        talker: index of the person.
        scale: of the clip's frame.
        flip: mirrored.
        window: (first, end) column of the picture that bounds the clip's frame; None: all columns.
        cutout: only the person is pasted; else the clip's whole frame.
        path: (time, left, top) of the upper left corner of the clip's frame: seconds of the
            recording, pixels of the picture; linear in between, constant before and after. Two
            points of the same time are a jump.
    """

    talker: int
    scale: float
    flip: bool
    window: tuple[int, int] | None
    cutout: bool
    path: tuple[tuple[float, float, float], ...]


@dataclasses.dataclass(frozen=True)
class FootageShot:
    """Frames between two cuts.

    Attributes:
        frames: number of frames, 25 a second.
        background: key of the clip whose background plate lies behind the people; None: the first
            appearances cover the picture.
        appearances: people from the farthest to the nearest.
        light: factors of brightness and contrast.
    """

    frames: int
    background: str | None
    appearances: tuple[PlacedTalker, ...]
    light: tuple[float, float]


@dataclasses.dataclass(frozen=True)
class HandheldCamera:
    """Motion of a camera in the hand: everything in the picture moves against it.

    Attributes:
        pan: motion to the right from the first to the last frame, in pixels.
        shake: amplitude of the shake along each axis, in pixels.
        frequencies: of the shake to the right and downwards, in Hz.
    """

    pan: float
    shake: float
    frequencies: tuple[float, float]


@dataclasses.dataclass(frozen=True)
class FootageSpec:
    """Description of a recording.

    Attributes:
        name: of its files.
        kind: see :class:`FootageSettings`.
        size: (height, width) in pixels.
        talkers: its people, whose masks have the numbers 1, 2, ... in this order.
        shots: in order.
        camera: None: it stands still.
        feather: width of the soft edge of cut-out people, in pixels.
    """

    name: str
    kind: FootageKind
    size: Size
    talkers: tuple[Talker, ...]
    shots: tuple[FootageShot, ...]
    camera: HandheldCamera | None
    feather: float

    @property
    def frames(self) -> int:
        """Number of frames, 25 a second."""
        return sum(shot.frames for shot in self.shots)

    @property
    def clip_keys(self) -> set[str]:
        """Keys of all clips that the recording is composed from."""
        keys = {talker.clip for talker in self.talkers}
        return keys | {shot.background for shot in self.shots if shot.background is not None}


def write_footage_list(path: Path, settings: FootageSettings, specs: Sequence[FootageSpec]) -> None:
    """Writes a list of recordings as JSON lines, the settings that drew it first."""
    head = {"schema": LIST_SCHEMA, "footage": dataclasses.asdict(settings)}
    with write_atomically(path) as file:
        for record in (head, *map(dataclasses.asdict, specs)):
            file.write(json_bytes(record))


def read_footage_list(path: Path) -> tuple[FootageSettings, list[FootageSpec]]:
    """Reads a list that :func:`write_footage_list` wrote.

    Raises:
        CavmaeError: the list is missing, damaged, or of another version.
    """
    try:
        head, records = read_records(path, LIST_SCHEMA, LIST_LIMIT_BYTES)
        settings: FootageSettings = value_as(
            FootageSettings, typed(head, "footage", dict), "footage"
        )
        specs: list[FootageSpec] = [
            value_as(FootageSpec, record, "a footage spec") for record in records
        ]
        _check_names(path, specs)
        return settings, specs
    except FileNotFoundError as error:
        raise CavmaeError(
            f"There is no list of recordings {path}: `cavmae make-footage` writes it."
        ) from error
    except (OSError, ValueError, UsageError) as error:
        raise CavmaeError(
            f"{path} is no readable list of recordings ({error}): {REMEDY}."
        ) from error


def _check_names(path: Path, specs: Sequence[FootageSpec]) -> None:
    """Raises ValueError for a name that would leave the folder, or that two recordings have."""
    names = [spec.name for spec in specs]
    for name in names:
        if not name.replace("-", "").isalnum() or names.count(name) > 1:
            raise ValueError(f"the name {name!r} of a recording is not plain, or is used twice")
    if not specs:
        raise ValueError(f"{path.name} names no recording")
