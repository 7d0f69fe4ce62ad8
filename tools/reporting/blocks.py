"""Blocks of a page, as the template renders them; all are plain text except drawings and data."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

from markupsafe import Markup


class PageBlock:
    """Part of a section."""

    @property
    def kind(self) -> str:
        """Name by which the template knows the block."""
        return type(self).__name__.lower()


@dataclasses.dataclass(frozen=True)
class Heading(PageBlock):
    """Subheading of a section."""

    text: str


@dataclasses.dataclass(frozen=True)
class Paragraph(PageBlock):
    """Paragraph of text.

    Attributes:
        text: its content.
        code: follows the text in a monospaced font, for example a command.
    """

    text: str
    code: str = ""


@dataclasses.dataclass(frozen=True)
class Table(PageBlock):
    """Table with a name for each row and column.

    Attributes:
        head: names of the columns; the first is that of the row names.
        body: rows, each a name and its cells.
    """

    head: Sequence[str]
    body: Sequence[tuple[str, Sequence[str]]]


@dataclasses.dataclass(frozen=True)
class Image(PageBlock):
    """Image with a caption."""

    url: Markup
    caption: str


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
class AudioPlayer:
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
class Gallery(PageBlock):
    """Items of one kind side by side; line charts are inline SVG."""

    items_kind: Literal["charts", "videos", "tracks"]
    items: Sequence[Markup | Video | AudioPlayer]


@dataclasses.dataclass(frozen=True)
class Timeline(PageBlock):
    """Chart over time, as wide as the page; it scrolls on a narrow one.

    Attributes:
        drawing: inline SVG.
        caption: names the chart for keyboards and screen readers.
    """

    drawing: Markup
    caption: str


@dataclasses.dataclass(frozen=True)
class Switch(PageBlock):
    """Panels of which one is displayed at a time, chosen by radio buttons.

    Attributes:
        name: unique in the page.
        label: of the choice.
        panels: title and blocks of each.
    """

    name: str
    label: str
    panels: Sequence[tuple[str, Sequence[PageBlock]]]


@dataclasses.dataclass(frozen=True)
class Details(PageBlock):
    """Text that unfolds on a click."""

    summary: str
    text: str


@dataclasses.dataclass(frozen=True)
class Listing(PageBlock):
    """List of sentences."""

    sentences: Sequence[str]
