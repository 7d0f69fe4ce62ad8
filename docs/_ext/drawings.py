"""Sphinx directive ``drawing NAME``: boxes and arrows as inline SVG in the colours of the theme.

Coordinates are in units of the SVG's view box. Colours are the CSS variables of the theme, so that
a drawing follows the reader's choice of light or dark.
"""

from html import escape
from typing import Any, NamedTuple

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


class Box(NamedTuple):
    """Rectangle with a title and a line below it; ``x`` and ``y`` are of its centre."""

    x: int
    y: int
    title: str
    text: str = ""
    width: int = 190
    kind: str = "data"

    @property
    def height(self) -> int:
        return 50 if self.text else 34


class Arrow(NamedTuple):
    """Line from the lower edge of a box to the upper edge of another, with a label beside it."""

    start: str
    end: str
    label: str = ""
    left: bool = False


class Drawing(NamedTuple):
    """Boxes by name, arrows between them, and what the drawing shows."""

    description: str
    width: int
    height: int
    boxes: dict[str, Box]
    arrows: list[Arrow]


DATA = Drawing(
    "The way of the data from raw videos to voices, masks and events",
    490, 540,
    {
        "videos": Box(125, 30, "raw videos", "any container, any codec"),
        "speech": Box(350, 190, "folders of speech", "FLAC, WAV, Opus, MP3"),
        "shards": Box(125, 110, "shards", "tar: fbank, frames, masks, FLAC", 216),
        "batches": Box(125, 190, "batches", "bytes shuffled, decoded last"),
        "encoder": Box(125, 280, "encoder", "CAV-MAE checkpoint", kind="model"),
        "sound": Box(350, 280, "sound separator", "voices from cues", kind="model"),
        "events": Box(125, 390, "event classifier", "classes of clips", kind="model"),
        "speaker": Box(350, 390, "speaker model", "a mask and a voice a slot", kind="model"),
        "timeline": Box(125, 500, "events over time", "events.json, probs.npz"),
        "voices": Box(350, 500, "voices and masks", "WAV, MP4, result.json"),
    },
    [
        Arrow("videos", "shards", "cavmae shard"),
        Arrow("shards", "batches", "stream"),
        Arrow("batches", "encoder", "cavmae pretrain"),
        Arrow("speech", "sound", "finetune separator"),
        Arrow("encoder", "events", "finetune events", left=True),
        Arrow("encoder", "speaker"),
        Arrow("sound", "speaker", "finetune speakers"),
        Arrow("events", "timeline", "cavmae predict"),
        Arrow("speaker", "voices", "cavmae separate"),
    ],
)  # fmt: skip

SPEAKER = Drawing(
    "The speaker model with the shapes of its tensors",
    930, 790,
    {
        "mixture": Box(95, 30, "mixture", "[N, S]", 150),
        "fbank": Box(290, 30, "fbank", "[N, 4 T, mel]", 160),
        "frames": Box(490, 30, "key frames", "[N, F, H, W, 3]", 170),
        "grey": Box(800, 30, "grey frames", "[N, T, h, w]", 170),
        "audio": Box(290, 130, "audio tokens", "[N, La, E]", 160, "model"),
        "tokens": Box(490, 130, "frame tokens", "[N, F, L, E]", 170, "model"),
        "motion": Box(690, 130, "motion", "of whole frames", 180, "model"),
        "queries": Box(290, 240, "query generator", "slots [N, Q, D]", 170, "model"),
        "pixels": Box(560, 240, "pixel decoder", "[N, F, width, H/4, W/4]", 220, "model"),
        "layers": Box(425, 340, "slot layers", "slots attend to audio and frames", 270, "model"),
        "masks": Box(520, 440, "masks", "[N, Q-1, F, H/4, W/4]", 210),
        "states": Box(290, 440, "states", "[N, Q, 4]", 150),
        "reader": Box(810, 540, "head reader", "crops [N, Q-1, T, s, s]", 210, "model"),
        "cue": Box(810, 630, "articulation cue", "[N, Q-1, T, 4]", 190),
        "separator": Box(290, 630, "sound separator", "spectra [N, Q, B, T']", 220, "model"),
        "voices": Box(290, 740, "voices and residual", "[N, Q, S]; sum: mixture", 220),
    },
    [
        Arrow("fbank", "audio", "encoder"),
        Arrow("frames", "tokens", "encoder"),
        Arrow("grey", "motion"),
        Arrow("audio", "queries"),
        Arrow("tokens", "pixels"),
        Arrow("motion", "pixels"),
        Arrow("queries", "layers"),
        Arrow("pixels", "layers"),
        Arrow("layers", "masks"),
        Arrow("layers", "states"),
        Arrow("masks", "reader"),
        Arrow("grey", "reader", "heads"),
        Arrow("reader", "cue"),
        Arrow("cue", "separator"),
        Arrow("mixture", "separator"),
        Arrow("states", "separator", "presence"),
        Arrow("separator", "voices"),
    ],
)  # fmt: skip
DRAWINGS = {"data": DATA, "speaker-model": SPEAKER}


def svg(drawing: Drawing, name: str) -> str:
    """Drawing as an SVG element."""
    least = drawing.width * 7 // 10  # below it the text would be too small: the drawing scrolls
    parts = [
        f'<svg viewBox="0 0 {drawing.width} {drawing.height}" role="img" '
        f'aria-label="{escape(drawing.description)}" '
        f'style="max-width: {drawing.width}px; min-width: {least}px">',
        f'<defs><marker id="{name}-head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" '
        'markerHeight="8" orient="auto"><path d="M0 0 L8 4 L0 8 z" class="head"/></marker></defs>',
    ]
    for arrow in drawing.arrows:
        parts += _arrow(drawing.boxes[arrow.start], drawing.boxes[arrow.end], arrow, name)
    for box in drawing.boxes.values():
        parts += _box(box)
    return "\n".join([*parts, "</svg>"])


def _arrow(start: Box, end: Box, arrow: Arrow, name: str) -> list[str]:
    if start.y == end.y:  # side by side
        side = 1 if end.x > start.x else -1
        x1, y1 = start.x + side * start.width // 2, start.y
        x2, y2 = end.x - side * end.width // 2, end.y
    else:
        y1, y2 = start.y + start.height // 2, end.y - end.height // 2
        low, high = end.x - end.width // 2 + 12, end.x + end.width // 2 - 12
        x1, x2 = start.x, min(max(start.x, low), high)
    line = f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" marker-end="url(#{name}-head)"/>'
    if not arrow.label:
        return [line]
    x, y = (x1 + x2) // 2 + (-10 if arrow.left else 10), (y1 + y2) // 2 + 5
    anchor = "end" if arrow.left else "start"
    text = (
        f'<text class="label" x="{x}" y="{y}" text-anchor="{anchor}">{escape(arrow.label)}</text>'
    )
    return [line, text]


def _box(box: Box) -> list[str]:
    left, top = box.x - box.width // 2, box.y - box.height // 2
    shape = (
        f'<rect class="{box.kind}" x="{left}" y="{top}" width="{box.width}" height="{box.height}" '
        'rx="6"/>'
    )
    title = f'<text class="title" x="{box.x}" y="{box.y + (-4 if box.text else 5)}">'
    parts = [shape, f"{title}{escape(box.title)}</text>"]
    if box.text:
        parts.append(f'<text class="text" x="{box.x}" y="{box.y + 15}">{escape(box.text)}</text>')
    return parts


class DrawingDirective(SphinxDirective):
    """Inline SVG of a drawing."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        self.env.note_reread()  # the drawing is not part of the page's source
        name = self.arguments[0]
        html = f'<div class="drawing">{svg(DRAWINGS[name], name)}</div>'
        return [nodes.raw("", html, format="html")]


def setup(app: Sphinx) -> dict[str, Any]:
    """Registers the directive."""
    app.add_directive("drawing", DrawingDirective)
    return {"parallel_read_safe": True}
