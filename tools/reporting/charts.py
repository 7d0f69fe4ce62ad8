"""Drawings of a page: lines as SVG that takes the page's colours, spectrograms as PNG."""

import base64
import io
import re
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from cavmae.common.quoting import caption, visible
from cavmae.datasets.stream.features import SAMPLE_RATE
from cavmae.finetune.inference.overlay import PALETTE

INK = "#010203"  # stands for the colour of the page's text
STYLES = ("-", "--", ":", "-.")
SIZE = (5.2, 3.1)  # inches of 72 pixels: as wide as a phone
BINS, STEP = 512, 160  # of a spectrogram
RANGE_DB = 70.0
SVG = "{http://www.w3.org/2000/svg}"


class Line(NamedTuple):
    """Values over steps."""

    steps: Sequence[float]
    values: Sequence[float]


def colour(number: int) -> str:
    """The number-th colour that colour-blind eyes tell apart, from 0; yellow is too pale."""
    usable = [c for c in PALETTE if c != (240, 228, 66)]
    return "#" + "".join(f"{v:02x}" for v in usable[number % len(usable)])


def lines(title: str, unit: str, named: Mapping[str, Line], logarithmic: bool = False) -> Markup:
    """A chart over training steps: inline SVG without styles, which a page's policy would refuse.

    Args:
        unit: of the values, beside the axis.
        named: lines by the names of the legend.
        logarithmic: unless no value is positive.
    """
    with matplotlib.rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": visible(title), "font.family": "sans-serif",
         "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK,
         "ytick.color": INK, "font.size": 9}
    ), warnings.catch_warnings():  # fmt: skip
        warnings.filterwarnings("ignore", "Glyph", UserWarning)  # the browser has other fonts
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
            # Not as labels of lines: of these, a leading underscore hides one.
            for text, name in zip(legend.get_texts(), named, strict=True):
                text.set_text(caption(name, 40))
                text.set_parse_math(False)
                text.set_color(INK)
        held = io.StringIO()
        figure.savefig(held, format="svg", transparent=True, metadata={"Date": None})
    # A drawing is one thing with one description, not a hundred bits of text.
    return _inline(held.getvalue(), f"{title} over training steps: {_described(named)}")


def _described(named: Mapping[str, Line]) -> str:
    parts = []
    for name, line in named.items():
        if line.values:
            parts.append(f"{name} from {line.values[0]:.3g} to {line.values[-1]:.3g}")
    return ", ".join(parts)


def _inline(svg: str, description: str) -> Markup:
    """An SVG file as a part of a page: no namespaces, no styles, ids only where they are used."""
    root = ElementTree.fromstring(svg)
    for parent in root.iter():
        for child in [*parent.iterfind(f"{SVG}metadata"), *parent.iterfind(f"{SVG}style")]:
            parent.remove(child)
    root.set("stroke-linejoin", "round")  # as matplotlib's style has it
    root.set("stroke-linecap", "butt")
    values = " ".join(value for element in root.iter() for value in element.attrib.values())
    used = set(re.findall(r"#([\w-]+)", values))
    for element in root.iter():
        element.tag = element.tag.removeprefix(SVG)
        attributes: dict[str, str] = {}
        for name, value in element.attrib.items():
            if name == "style":
                attributes |= _presented(value)
            elif name != "id" or value in used:
                attributes[name.rpartition("}")[2]] = value.replace(INK, "currentColor")
        element.attrib.clear()
        element.attrib.update(attributes)
    root.attrib |= {"role": "img", "aria-label": visible(description)}
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _presented(style: str) -> dict[str, str]:
    """Declarations of a style as attributes, which mean the same in SVG."""
    attributes: dict[str, str] = {}
    for declaration in filter(None, map(str.strip, style.split(";"))):
        name, _, value = declaration.partition(":")
        value = value.strip().replace(INK, "currentColor")
        if name == "font":  # is none of SVG's attributes; matplotlib before 3.11
            size, _, family = value[value.rfind(" ", 0, value.index("px")) + 1 :].partition(" ")
            attributes |= {"font-size": size, "font-family": family}
        else:
            attributes[name] = value
    return attributes


def _sizes(wave: np.ndarray) -> np.ndarray:
    padded = np.pad(wave, (0, max(0, BINS - len(wave))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, BINS)[::STEP]
    # A long recording has more frames than the drawing has columns.
    frames = frames[:: max(1, len(frames) // 1200)]
    sizes: np.ndarray = np.abs(np.fft.rfft(frames * np.hanning(BINS), axis=1)).T
    return sizes


def loudest(wave: np.ndarray) -> float:
    """What 0 dB is in a spectrogram of a wave, or of its parts."""
    return max(float(_sizes(wave).max()), 1e-6)


def spectrogram(wave: np.ndarray, top: float) -> Markup:
    """A spectrogram as a data URL of a PNG: kHz over seconds, in dB.

    Args:
        wave: float [samples] at 16 kHz.
        top: size that is 0 dB (:func:`loudest` of the mixture), so that what is silent looks so.
    """
    levels = 20 * np.log10(_sizes(wave) / top + 1e-6)
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
    held = io.BytesIO()
    figure.savefig(held, format="png", dpi=100)
    return data_url(held.getvalue(), "image/png")


def data_url(data: bytes, kind: str) -> Markup:
    """Bytes as part of a page.

    Args:
        kind: of ours, such as ``image/png``.
    """
    return Markup(f"data:{kind};base64,{base64.b64encode(data).decode()}")
