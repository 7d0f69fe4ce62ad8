"""Blocks of a page, as the template renders them; all are plain text except drawings and data."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from markupsafe import Markup


@dataclasses.dataclass(frozen=True)
class Heading:
    """Subheading of a section."""

    text: str
    kind: ClassVar[str] = "heading"


@dataclasses.dataclass(frozen=True)
class Paragraph:
    """Paragraph of text.

    Attributes:
        text: its content.
        code: follows the text in a monospaced font, for example a command.
    """

    text: str
    code: str = ""
    kind: ClassVar[str] = "paragraph"


@dataclasses.dataclass(frozen=True)
class Table:
    """Table with a name for each row and column.

    Attributes:
        head: names of the columns; the first is that of the row names.
        body: rows, each a name and its cells.
    """

    head: Sequence[str]
    body: Sequence[tuple[str, Sequence[str]]]
    kind: ClassVar[str] = "table"


@dataclasses.dataclass(frozen=True)
class Image:
    """Image with a caption."""

    url: Markup
    caption: str
    kind: ClassVar[str] = "image"


@dataclasses.dataclass(frozen=True)
class Charts:
    """Line charts (inline SVG) side by side."""

    drawings: Sequence[Markup]
    kind: ClassVar[str] = "charts"


@dataclasses.dataclass(frozen=True)
class Video:
    """Video player.

    Attributes:
        url: data URL of the MP4 file.
        poster: data URL of the frame that is displayed before it plays.
        caption: below the player.
        has_audio: False: it loops, muted.
    """

    url: Markup
    poster: Markup
    caption: str
    has_audio: bool


@dataclasses.dataclass(frozen=True)
class Videos:
    """Video players side by side."""

    videos: Sequence[Video]
    kind: ClassVar[str] = "videos"


@dataclasses.dataclass(frozen=True)
class RecordingBlock:
    """Audio player with a spectrogram.

    Attributes:
        url: data URL of the audio file.
        spectrogram: data URL of the image.
        name: of the track.
        note: after the name.
    """

    url: Markup
    spectrogram: Markup
    name: str
    note: str


@dataclasses.dataclass(frozen=True)
class Recordings:
    """Audio players side by side."""

    recordings: Sequence[RecordingBlock]
    kind: ClassVar[str] = "recordings"


@dataclasses.dataclass(frozen=True)
class Details:
    """Text that unfolds on a click."""

    summary: str
    text: str
    kind: ClassVar[str] = "details"


@dataclasses.dataclass(frozen=True)
class ListBlock:
    """List of sentences."""

    sentences: Sequence[str]
    kind: ClassVar[str] = "listing"


Block = Heading | Paragraph | Table | Image | Charts | Videos | Recordings | Details | ListBlock
