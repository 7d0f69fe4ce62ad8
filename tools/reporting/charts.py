"""Line charts and timelines as inline SVG in the page's colours, and spectrograms as PNG."""

import base64
import contextlib
import io
import re
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from cavmae.common.quoting import caption, visible
from cavmae.datasets.stream.features import SAMPLE_RATE
from cavmae.finetune.inference.overlay import PALETTE, color_of

INK = "#010203"  # placeholder that becomes the colour of the page's text
STYLES = ("-", "--", ":", "-.")
SIZE = (5.2, 3.1)  # inches of 72 pixels: the width of a phone
WINDOW, HOP = 512, 160  # samples of a spectrogram's frame, and between frames
RANGE_DB = 70.0
TIMELINE_WIDTH = 9.6  # inches
COLUMNS = 600  # of a timeline
DESCRIBED_SPANS = 4  # that a chart's description lists of a person
SVG = "{http://www.w3.org/2000/svg}"


class TimelineRow(NamedTuple):
    """Row of a timeline.

    Attributes:
        name: of the class.
        probs: in each stretch of time.
        spans: (start, end) in seconds in which the class is present.
    """

    name: str
    probs: Sequence[float]
    spans: Sequence[tuple[float, float]]


class SpeakingRow(NamedTuple):
    """Row of a chart of who speaks when.

    Attributes:
        name: of the person.
        number: of the person, which gives the color of the overlay.
        visible: (start, end) in seconds in which the person is visible.
        speech: (start, end) in seconds in which they speak.
    """

    name: str
    number: int
    visible: Sequence[tuple[float, float]]
    speech: Sequence[tuple[float, float]]


class Line(NamedTuple):
    """Values over training steps."""

    steps: Sequence[float]
    values: Sequence[float]


def colour(number: int) -> str:
    """Return a colour of the colour-blind-safe palette without yellow, which is too pale.

    Args:
        number: index of the colour, from 0; repeats.
    """
    usable = [c for c in PALETTE if c != (240, 228, 66)]
    return "#" + "".join(f"{v:02x}" for v in usable[number % len(usable)])


def lines(title: str, unit: str, named: Mapping[str, Line], logarithmic: bool = False) -> Markup:
    """Line chart over training steps: inline SVG without styles, which the page's policy refuses.

    Args:
        title: above the chart.
        unit: of the values, along the axis.
        named: lines by their names in the legend.
        logarithmic: scale of the values, if any is positive.
    """
    with _drawing(title):
        figure = Figure(figsize=SIZE, layout="constrained")
        axis = figure.subplots()
        for number, line in enumerate(named.values()):
            few = len(line.steps) < 20
            axis.plot(
                line.steps, line.values, STYLES[number // 6 % 4], color=colour(number),
                label=f"{number}", linewidth=1.5, marker="o" if few else None, markersize=3,
            )  # fmt: skip
        if logarithmic and any(value > 0 for line in named.values() for value in line.values):
            axis.set_yscale("log")
        axis.set_title(caption(title), fontsize=10, parse_math=False)
        axis.set_xlabel("step")
        axis.set_ylabel(caption(unit, 40), parse_math=False)
        axis.grid(visible=True, alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        if len(named) > 1:
            legend = axis.legend(fontsize=8, framealpha=0)
            # Set here because matplotlib hides a line whose label starts with an underscore.
            for text, name in zip(legend.get_texts(), named, strict=True):
                text.set_text(caption(name, 40))
                text.set_parse_math(False)
                text.set_color(INK)
        svg = _svg_of(figure)
    # A screen reader gets one description rather than every text of the drawing.
    return _inline(svg, f"{title} over training steps: {_description(named)}")


def timeline(title: str, rows: Sequence[TimelineRow], bounds: Sequence[float]) -> Markup:
    """Chart of probabilities over time, a row for each class: inline SVG as of :func:`lines`.

    The height of an area is the probability, from 0 to 1; stretches in which the class is present
    are filled in full colour.

    Args:
        title: above the chart.
        rows: the first one is on top.
        bounds: edges of the stretches of time, one more than values of a row, in seconds.
    """
    with _drawing(title):
        figure = Figure(figsize=(TIMELINE_WIDTH, 0.9 + 0.42 * len(rows)), layout="constrained")
        axis = figure.subplots()
        for number, row in enumerate(rows):
            base = len(rows) - 1 - number
            edges, values = _peaks(bounds, row.probs)
            # Both corners of each column, so that columns that are left out leave a gap.
            corners, heights = np.repeat(edges, 2)[1:-1], base + 0.86 * np.repeat(values, 2)
            for mask, alpha in ((None, 0.3), (np.repeat(_inside(edges, row.spans), 2), 1.0)):
                axis.fill_between(
                    corners, base, heights, where=mask, color=colour(1), alpha=alpha, linewidth=0
                )
            axis.axhline(base, color=INK, linewidth=0.5, alpha=0.5)
        axis.set_title(caption(title), fontsize=10, parse_math=False)
        axis.set_xlabel("seconds")
        axis.set_xlim(bounds[0], bounds[-1])
        axis.set_ylim(0, len(rows))
        axis.set_yticks(
            [len(rows) - 1 - n + 0.43 for n in range(len(rows))],
            [caption(row.name, 28) for row in rows], parse_math=False,
        )  # fmt: skip
        axis.tick_params(axis="y", length=0)
        axis.spines[["top", "right", "left"]].set_visible(False)
        svg = _svg_of(figure)
    parts = [f"{row.name} up to {max(row.probs):.2f}" for row in rows]
    return _inline(svg, f"{title}, over time: {', '.join(parts)}")


def speaking_chart(title: str, rows: Sequence[SpeakingRow], seconds: float) -> Markup:
    """Chart of who speaks when: inline SVG as of :func:`lines`.

    A thin bar lies where a person is visible, a thick one where they speak, in the color of their
    outline in the overlay.

    Args:
        title: above the chart.
        rows: the first one is on top.
        seconds: length of the recording.
    """
    with _drawing(title):
        figure = Figure(figsize=(TIMELINE_WIDTH, 0.9 + 0.34 * len(rows)), layout="constrained")
        axis = figure.subplots()
        for number, row in enumerate(rows):
            middle = len(rows) - 0.5 - number
            color = "#" + "".join(f"{v:02x}" for v in color_of(row.number))
            for spans, height, alpha in ((row.visible, 0.12, 0.6), (row.speech, 0.62, 1.0)):
                bars = [(start, end - start) for start, end in spans]
                axis.broken_barh(
                    bars, (middle - height / 2, height), facecolors=color, alpha=alpha,
                    edgecolors=INK if height > 0.2 else "none", linewidth=0.5,
                )  # fmt: skip
        axis.set_title(caption(title), fontsize=10, parse_math=False)
        axis.set_xlabel("seconds")
        axis.set_xlim(0, seconds)
        axis.set_ylim(0, len(rows))
        axis.set_yticks(
            [len(rows) - 0.5 - n for n in range(len(rows))],
            [caption(row.name, 28) for row in rows], parse_math=False,
        )  # fmt: skip
        axis.tick_params(axis="y", length=0)
        axis.grid(visible=True, axis="x", alpha=0.25)
        axis.spines[["top", "right", "left"]].set_visible(False)
        svg = _svg_of(figure)
    parts = [
        f"{row.name} speaks {_spoken(row.speech)}" if row.speech else f"{row.name} does not speak"
        for row in rows
    ]
    return _inline(svg, f"{title}: {'; '.join(parts)}")


def _spoken(spans: Sequence[tuple[float, float]]) -> str:
    """Text of speech spans: the first few, and their number."""
    more = len(spans) - DESCRIBED_SPANS
    texts = [f"from {start:.1f} to {end:.1f} s" for start, end in spans[:DESCRIBED_SPANS]]
    return ", ".join(texts + ([f"and {more} more times"] if more > 0 else []))


def _peaks(bounds: Sequence[float], probs: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Edges and values of at most :data:`COLUMNS` stretches, each with its largest probability."""
    size = -(-len(probs) // COLUMNS)
    first = np.arange(0, len(probs), size)
    edges = np.append(np.asarray(bounds)[first], bounds[-1])
    return edges, np.maximum.reduceat(np.asarray(probs, dtype=float), first)


def _inside(edges: np.ndarray, spans: Sequence[tuple[float, float]]) -> np.ndarray:
    """Whether the stretch between two edges overlaps a span, bool [edges - 1]."""
    starts, ends = edges[:-1], edges[1:]
    overlaps = [(starts < end) & (ends > start) for start, end in spans]
    inside: np.ndarray = np.any([np.zeros(len(starts), dtype=bool), *overlaps], axis=0)
    return inside


@contextlib.contextmanager
def _drawing(title: str) -> Iterator[None]:
    """Settings of matplotlib for a chart that becomes part of the page."""
    with matplotlib.rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": visible(title), "font.family": "sans-serif",
         "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK,
         "ytick.color": INK, "font.size": 9}
    ), warnings.catch_warnings():  # fmt: skip
        warnings.filterwarnings("ignore", "Glyph", UserWarning)  # the browser has other fonts
        yield


def _svg_of(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return buffer.getvalue()


def _description(named: Mapping[str, Line]) -> str:
    parts = []
    for name, line in named.items():
        if line.values:
            parts.append(f"{name} from {line.values[0]:.3g} to {line.values[-1]:.3g}")
    return ", ".join(parts)


def _inline(svg: str, description: str) -> Markup:
    """Convert an SVG file to inline SVG: without namespaces, styles and unused ids."""
    root = ElementTree.fromstring(svg)
    for parent in root.iter():
        for child in [*parent.iterfind(f"{SVG}metadata"), *parent.iterfind(f"{SVG}style")]:
            parent.remove(child)
    root.set("stroke-linejoin", "round")  # replaces matplotlib's removed style element
    root.set("stroke-linecap", "butt")
    values = " ".join(value for element in root.iter() for value in element.attrib.values())
    used = set(re.findall(r"#([\w-]+)", values))
    for element in root.iter():
        element.tag = element.tag.removeprefix(SVG)
        attributes: dict[str, str] = {}
        for name, value in element.attrib.items():
            if name == "style":
                attributes |= _presentation(value)
            elif name != "id" or value in used:
                attributes[name.rpartition("}")[2]] = value.replace(INK, "currentColor")
        element.attrib.clear()
        element.attrib.update(attributes)
    root.attrib |= {"role": "img", "aria-label": visible(description)}
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _presentation(style: str) -> dict[str, str]:
    """Convert declarations of a style to the equivalent presentation attributes of SVG."""
    attributes: dict[str, str] = {}
    for declaration in filter(None, map(str.strip, style.split(";"))):
        name, _, value = declaration.partition(":")
        value = value.strip().replace(INK, "currentColor")
        if name == "font":  # not an SVG attribute; matplotlib before 3.11 writes it
            size, _, family = value[value.rfind(" ", 0, value.index("px")) + 1 :].partition(" ")
            attributes |= {"font-size": size, "font-family": family}
        else:
            attributes[name] = value
    return attributes


def _magnitudes(wave: np.ndarray) -> np.ndarray:
    """Magnitude STFT, float [frequencies, frames]."""
    padded = np.pad(wave, (0, max(0, WINDOW - len(wave))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP]
    # A long recording has more frames than the drawing has columns.
    frames = frames[:: max(1, len(frames) // 1200)]
    magnitudes: np.ndarray = np.abs(np.fft.rfft(frames * np.hanning(WINDOW), axis=1)).T
    return magnitudes


def max_magnitude(wave: np.ndarray) -> float:
    """Largest magnitude of a wave's STFT: 0 dB in the spectrograms of the wave and its parts."""
    return max(float(_magnitudes(wave).max()), 1e-6)


def spectrogram(wave: np.ndarray, reference: float) -> Markup:
    """Spectrogram as a data URL of a PNG: kHz over seconds, in dB.

    Args:
        wave: float [samples] at 16 kHz.
        reference: magnitude of 0 dB: :func:`max_magnitude` of the mixture, so that a silent voice
            stays dark.
    """
    levels = 20 * np.log10(_magnitudes(wave) / reference + 1e-6)
    figure = Figure(figsize=(6.4, 1.9), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(
        levels, origin="lower", aspect="auto", cmap="magma", vmin=-RANGE_DB, vmax=0,
        extent=(0, len(wave) / SAMPLE_RATE, 0, SAMPLE_RATE / 2000), interpolation="nearest",
    )  # fmt: skip
    axis.set_xlabel("seconds", fontsize=8)
    axis.set_ylabel("kHz", fontsize=8)
    axis.tick_params(labelsize=7)
    bar = figure.colorbar(image, ax=axis, pad=0.01)
    bar.set_label("dB below the\nmixture's loudest", fontsize=7)
    bar.ax.tick_params(labelsize=6)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return data_url(buffer.getvalue(), "image/png")


def data_url(data: bytes, media_type: str) -> Markup:
    """Data URL of a file.

    Args:
        data: content of the file.
        media_type: a constant of our code, never input, because it is not escaped.
    """
    return Markup(f"data:{media_type};base64,{base64.b64encode(data).decode()}")
