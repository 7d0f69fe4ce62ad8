"""Parts of a page, as the template knows them; all of it is plain text but drawings and data."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from markupsafe import Markup


@dataclasses.dataclass(frozen=True)
class Heading:
    """Above one of several things of a kind."""

    text: str
    kind: ClassVar[str] = "heading"


@dataclasses.dataclass(frozen=True)
class Paragraph:
    """Text.

    Attributes:
        code: that follows it, such as a command.
    """

    text: str
    code: str = ""
    kind: ClassVar[str] = "paragraph"


@dataclasses.dataclass(frozen=True)
class Table:
    """Numbers with a name for each row and column."""

    head: Sequence[str]
    body: Sequence[tuple[str, Sequence[str]]]
    kind: ClassVar[str] = "table"


@dataclasses.dataclass(frozen=True)
class Image:
    """A picture and what it shows."""

    url: Markup
    caption: str
    kind: ClassVar[str] = "image"


@dataclasses.dataclass(frozen=True)
class Charts:
    """Drawings (SVG) side by side."""

    drawings: Sequence[Markup]
    kind: ClassVar[str] = "charts"


@dataclasses.dataclass(frozen=True)
class Video:
    """A film.

    Attributes:
        poster: picture that is shown before it plays.
    """

    url: Markup
    poster: Markup
    caption: str
    sound: bool


@dataclasses.dataclass(frozen=True)
class Videos:
    """Players side by side."""

    videos: Sequence[Video]
    kind: ClassVar[str] = "videos"


@dataclasses.dataclass(frozen=True)
class RecordingBlock:
    """Sound with its spectrogram.

    Attributes:
        note: beside the name.
    """

    url: Markup
    spectrogram: Markup
    name: str
    note: str


@dataclasses.dataclass(frozen=True)
class Recordings:
    """Players side by side."""

    recordings: Sequence[RecordingBlock]
    kind: ClassVar[str] = "recordings"


@dataclasses.dataclass(frozen=True)
class Details:
    """A text that opens on a click."""

    summary: str
    text: str
    kind: ClassVar[str] = "details"


@dataclasses.dataclass(frozen=True)
class ListBlock:
    """Sentences."""

    sentences: Sequence[str]
    kind: ClassVar[str] = "listing"


Block = Heading | Paragraph | Table | Image | Charts | Videos | Recordings | Details | ListBlock
