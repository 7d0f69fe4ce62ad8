"""Arms and hands that gesture. Units: head heights from the middle of an upright head."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import skia

from cavmae.datasets.synthetic.appearance import SKINS, Appearance
from cavmae.datasets.synthetic.canvas import (
    Canvas,
    Point,
    gradient,
    oval,
    paint,
    pen,
    placement,
    shade,
)
from cavmae.datasets.synthetic.motion import smooth_noise, spans_weight
from cavmae.datasets.synthetic.population import rng_for
from cavmae.datasets.synthetic.scenery import natural_color
from cavmae.datasets.synthetic.staging import Gesture, LoneHand

RISE = 0.45  # s: a hand takes this long to come up
UPPER, FORE = 1.15, 1.05  # lengths of the upper arm and the forearm
SHOULDER, REST = 1.05, 2.9  # heights of the shoulder's joint and of a resting hand
FINGERS = ((-0.095, 0.20), (-0.035, 0.235), (0.03, 0.225), (0.09, 0.175))  # place, reach
# From the wrist to the end of fingers or of a tool, with a margin.
HAND_REACH, TOOL_REACH = 0.75, 1.7
# Of each edge: sign of the way into the frame, and degrees by which a hand turns to point there.
INWARDS = {"left": (1, 90), "right": (-1, -90), "top": (1, 180), "bottom": (-1, 0)}


class HandTrack(NamedTuple):
    """Movement of one hand.

    Attributes:
        side: -1 left, 1 right of the frame.
        x, y: of the wrist, float64 [frames].
        curl: of the fingers, float64 [frames]: 0 stretched to 1 a fist.
    """

    side: int
    x: np.ndarray
    y: np.ndarray
    curl: np.ndarray


def draw_hand_tracks(
    gesture: Gesture, appearance: Appearance, times: np.ndarray, rng: np.random.Generator
) -> list[HandTrack]:
    """Draw the hands' movements over a clip: up for each span, then with beats and sweeps.

    Args:
        times: of the frames in seconds, float64 [frames].
    """
    frames = len(times)
    rate = 1 / (times[1] - times[0]) if frames > 1 else 1.0
    weight = spans_weight(gesture.spans, times, RISE)
    sides = {"left": (-1,), "right": (1,), "both": (-1, 1)}[gesture.hands]
    tracks = []
    for number, side in enumerate(sides):
        home_x = side * float(rng.uniform(0.12, 0.75))
        home_y = float(rng.uniform(0.75, 1.45))
        x = home_x + 0.16 * smooth_noise(frames, rate, 0.25, rng)
        y = home_y + 0.14 * smooth_noise(frames, rate, 0.14, rng)
        y += 0.14 * smooth_noise(frames, rate, 0.5, rng)
        if gesture.before_mouth and number == 0:
            start, end = gesture.spans[int(rng.integers(len(gesture.spans)))]
            middle = rng.uniform(start, end)
            near = np.exp(-0.5 * ((times - middle) / 0.3) ** 4)
            mouth = (side * 0.05, appearance.mouth_y + 0.22)
            x, y = x + near * (mouth[0] - x), y + near * (mouth[1] - y)
        rest_x = side * (appearance.shoulders - 0.1)
        curl = np.clip(rng.uniform(0, 0.8) + 0.35 * smooth_noise(frames, rate, 0.2, rng), 0, 1)
        tracks.append(
            HandTrack(side, rest_x + weight * (x - rest_x), REST + weight * (y - REST), curl)
        )
    return tracks


class Hands:
    """Draws a person's gesturing arms and hands before their chest.

    Args:
        sleeve: paint of the sleeves.
        label: of their pixels.
    """

    def __init__(
        self, appearance: Appearance, sleeve: skia.Paint, tracks: Sequence[HandTrack], label: int
    ):
        self._appearance, self._tracks, self._label = appearance, tracks, label
        self._sleeve = sleeve
        self._bare = appearance.clothes in ("round", "v") and appearance.shoulders < 0.86
        self._skin = paint(shade(appearance.skin, 0.95))
        self._crease = pen(shade(appearance.skin, 0.62), 0.012, 0.8)
        self._seam = pen(shade(appearance.cloth, 0.55), 0.02, 0.7)

    def draw(self, canvas: Canvas, number: int) -> None:
        """Draw frame ``number``."""
        for track in self._tracks:
            wrist = (float(track.x[number]), float(track.y[number]))
            if wrist[1] < REST - 0.05:
                self._draw_arm(canvas, track.side, wrist, float(track.curl[number]))

    def _draw_arm(self, canvas: Canvas, side: int, wrist: Point, curl: float) -> None:
        shoulder = (side * (self._appearance.shoulders - 0.16), SHOULDER)
        elbow = _elbow(shoulder, wrist, side)
        upper = _limb(shoulder, elbow, 0.2, 0.17)
        canvas.draw(upper, self._sleeve, self._label)
        canvas.draw(_sides(shoulder, elbow, 0.2, 0.17), self._seam, self._label)
        canvas.draw(oval(*elbow, 0.168, 0.168), self._sleeve, self._label)
        fore = _limb(elbow, wrist, 0.165, 0.115)
        canvas.draw(fore, self._skin if self._bare else self._sleeve, self._label)
        line = self._crease if self._bare else self._seam
        canvas.draw(_sides(elbow, wrist, 0.165, 0.115), line, self._label)
        angle = float(np.degrees(np.arctan2(wrist[1] - elbow[1], wrist[0] - elbow[0]))) + 90
        with canvas.transformed(placement(*wrist, angle, 1.0)):
            draw_hand(canvas, side, curl, (self._skin, self._crease), self._label)


class LoneArm:
    """Draws the arm of a person out of view, which belongs to no mask.

    Args:
        size: (width, height) of the frame in pixels.
        times: of the frames in seconds, float64 [frames].
    """

    def __init__(self, hand: LoneHand, size: tuple[int, int], times: np.ndarray):
        owner = rng_for("owner of a lone hand", hand.seed)
        skin = SKINS[int(owner.integers(len(SKINS)))]
        self._paints = (paint(skin), pen(shade(skin, 0.62), 0.012, 0.8))
        self._sleeve = paint(shade(natural_color(owner), 0.7))
        self._bare = bool(owner.random() < 0.5)
        rng = rng_for("lone hand", hand.seed, hand.side)
        width, height = size
        frames = len(times)
        rate = 1 / (times[1] - times[0]) if frames > 1 else 1.0
        weight = spans_weight(hand.spans, times, RISE)
        self._scale = height * hand.size
        reach = float(rng.uniform(0.1, 0.5)) * height
        sway = smooth_noise(frames, rate, 0.3, rng) * 0.05 * height
        away = (TOOL_REACH if hand.holds else HAND_REACH) * self._scale
        inwards = (reach + sway) * weight - away * (1 - weight)
        across = smooth_noise(frames, rate, 0.4, rng) * 0.06 * height
        towards, degrees = INWARDS[hand.edge]
        if hand.edge in ("left", "right"):
            self._x = (width if towards < 0 else 0) + towards * inwards
            self._y = hand.along * height + across
        else:
            self._x = hand.along * width + across
            self._y = (height if towards < 0 else 0) + towards * inwards
        fist = 0.75 if hand.holds else 0.5
        self._curl = np.clip(fist + 0.4 * smooth_noise(frames, rate, 0.3, rng), 0, 1)
        lean = float(rng.uniform(-35, 35)) + np.clip(
            8 * smooth_noise(frames, rate, 0.5, rng), -20, 20
        )
        self._degrees = degrees + lean
        # The arm ends beyond the edge, however it leans.
        self._length = 0.5 + inwards.clip(0) / self._scale / np.cos(np.radians(lean))
        self._side = hand.side
        self._tool = _Tool(rng) if hand.holds else None

    def draw(self, canvas: Canvas, number: int) -> None:
        """Draw frame ``number``, in pixels."""
        place = placement(
            float(self._x[number]), float(self._y[number]), float(self._degrees[number]),
            self._scale,
        )  # fmt: skip
        skin = self._paints[0]
        with canvas.transformed(place):
            if self._tool is not None:
                self._tool.draw(canvas)
            end = 0.65 + float(self._length[number])
            sleeve = skin if self._bare else self._sleeve
            canvas.draw(_limb((0, end), (0, 0.6), 0.2, 0.16), sleeve, 0)
            canvas.draw(_limb((0, 0.65), (0, 0), 0.14, 0.1), skin, 0)
            draw_hand(canvas, self._side, float(self._curl[number]), self._paints, 0)


class _Tool:
    """A tool in a hand whose wrist is at 0 and which points upwards: a handle and a blade."""

    def __init__(self, rng: np.random.Generator):
        self._degrees = float(rng.uniform(-80, 80))
        length, wide = float(rng.uniform(0.3, 0.6)), float(rng.uniform(0.05, 0.16))
        tone = natural_color(rng)
        self._handle = skia.Path()
        box = skia.Rect(-wide, -length, wide, length)
        self._handle.addRoundRect(box, 0.8 * wide, 0.8 * wide)
        ends = [shade(tone, 1.3), shade(tone, 0.5)]
        self._filling = gradient((-wide, 0), (wide, 0), ends)
        narrow, reach = wide * float(rng.uniform(0.15, 0.9)), length * float(rng.uniform(1, 1.9))
        self._blade = _limb((0, -0.9 * length), (0, -reach), narrow, 0.7 * narrow)
        self._metal = paint(shade((0.75, 0.76, 0.78), rng.uniform(0.4, 1.2)))

    def draw(self, canvas: Canvas) -> None:
        """Draw the tool, below the fingers."""
        with canvas.transformed(placement(0, -0.3, self._degrees, 1.0)):
            canvas.draw(self._blade, self._metal, 0)
            canvas.draw(self._handle, self._filling, 0)


def draw_hand(
    canvas: Canvas, side: int, curl: float, paints: tuple[skia.Paint, skia.Paint], label: int
) -> None:
    """Draw a hand whose wrist is at 0 and which points upwards.

    Args:
        side: of the arm; the thumb is on the other.
        curl: 0 stretched fingers to 1 a fist.
        paints: of skin and creases.
        label: of its pixels.
    """
    skin, crease = paints
    wrist = skia.Path()
    wrist.addRoundRect(skia.Rect(-0.095, -0.12, 0.095, 0.12), 0.06, 0.06)
    canvas.draw(wrist, skin, label)
    canvas.draw(oval(0, -0.19, 0.14, 0.16), skin, label)
    lines = skia.Path()
    for place, reach in FINGERS:
        high = -0.27 - reach * (1 - 0.75 * curl)
        lean = 0.35 * place * (1 - curl)
        finger = _limb((place, -0.25), (place + lean, high), 0.038, 0.032)
        finger.addOval(
            skia.Rect(place + lean - 0.033, high - 0.03, place + lean + 0.033, high + 0.035)
        )
        canvas.draw(finger, skin, label)
        lines.moveTo(place + 0.035, -0.22)
        lines.lineTo(place + lean + 0.035, high + 0.03)
    tip = (-side * (0.27 - 0.14 * curl), -0.27)
    thumb = _limb((-side * 0.09, -0.12), tip, 0.055, 0.036)
    thumb.addOval(skia.Rect(tip[0] - 0.037, tip[1] - 0.037, tip[0] + 0.037, tip[1] + 0.037))
    canvas.draw(thumb, skin, label)
    canvas.draw(lines, crease)


def _elbow(shoulder: Point, wrist: Point, side: int) -> Point:
    """Elbow of an arm with these ends, bent outwards and down; nearer arms look shorter."""
    dx, dy = wrist[0] - shoulder[0], wrist[1] - shoulder[1]
    reach = max(float(np.hypot(dx, dy)), 1e-6)
    if reach >= UPPER + FORE - 0.01:
        part = UPPER / (UPPER + FORE)
        return shoulder[0] + part * dx, shoulder[1] + part * dy
    along = (UPPER**2 - FORE**2 + reach**2) / (2 * reach)
    away = float(np.sqrt(max(UPPER**2 - along**2, 0.0)))
    ux, uy = dx / reach, dy / reach
    # Of the two elbows the one further down, a little foreshortened.
    first = (shoulder[0] + along * ux - away * uy, shoulder[1] + along * uy + away * ux)
    second = (shoulder[0] + along * ux + away * uy, shoulder[1] + along * uy - away * ux)
    x, y = max(first, second, key=lambda point: point[1])
    return x + 0.12 * side, y


def _sides(start: Point, end: Point, first: float, last: float) -> skia.Path:
    """Both long sides of a limb, without its ends."""
    limb = _limb(start, end, first, last)
    corners = [limb.getPoint(number) for number in range(4)]
    path = skia.Path()
    for a, b in ((corners[0], corners[1]), (corners[2], corners[3])):
        path.moveTo(0.75 * a.x() + 0.25 * b.x(), 0.75 * a.y() + 0.25 * b.y())
        path.lineTo(0.2 * a.x() + 0.8 * b.x(), 0.2 * a.y() + 0.8 * b.y())
    return path


def _limb(start: Point, end: Point, first: float, last: float) -> skia.Path:
    """Tapered outline between two points, with half widths at both."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    length = max(float(np.hypot(dx, dy)), 1e-6)
    nx, ny = -dy / length, dx / length
    path = skia.Path()
    path.moveTo(start[0] + nx * first, start[1] + ny * first)
    path.lineTo(end[0] + nx * last, end[1] + ny * last)
    path.lineTo(end[0] - nx * last, end[1] - ny * last)
    path.lineTo(start[0] - nx * first, start[1] - ny * first)
    path.close()
    return path
