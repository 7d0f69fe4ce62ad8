"""Axes of a motion pathway's expansion, and the network of a point. Imports no PyTorch."""

import dataclasses
import re
from typing import Any

from cavmae.common.errors import UsageError
from cavmae.common.registry import to_json_value
from cavmae.datasets.stream.rates import VIDEO_RATE
from cavmae.finetune.motion.settings import MotionOptions
from cavmae.tools.expanding.search import Axis, Point
from cavmae.tools.expanding.settings import ExpandSettings

KEY_SECONDS = 8 / VIDEO_RATE  # from one key frame with masks to the next
SIDE_STEP = 8  # pixels between resolutions
LARGEST_FACTOR = 64  # between an option's largest value and that at the start
FINE = 8  # integers up to this are all tried, larger ones in steps of half of it
FRACTION_STEP = 0.25  # between values that are no integers


@dataclasses.dataclass(frozen=True)
class Network:
    """A motion pathway and its input.

    Attributes:
        motion: options of the pathway.
        resolution: side of the crops around heads in pixels.
        seconds: of a clip.
    """

    motion: MotionOptions
    resolution: int
    seconds: float

    @property
    def frames(self) -> int:
        """T, number of grey frames of a clip."""
        return round(self.seconds * VIDEO_RATE)

    @property
    def label(self) -> str:
        """Name of its files: all options."""
        values = to_json_value(self)
        options = values.pop("motion")
        words = [options.pop("name"), *(f"{k} {v}" for k, v in {**options, **values}.items())]
        return "-".join(re.findall("[A-Za-z0-9._]+", " ".join(words)))

    def speaker_options(self) -> str:
        """Options of `cavmae finetune speakers` for this network, as on a command line."""
        values = to_json_value(self.motion)
        words = [f"--model.head-motion {values.pop('name')}"]
        words += [f"--model.head-motion.{name.replace('_', '-')} {v}" for name, v in values.items()]
        words.append(f"--model.head-size {self.resolution}")
        keys = round(self.seconds / KEY_SECONDS)
        return " ".join([*words, f"--model.key-frames {keys} --compose.seconds {self.seconds}"])


def start_point(settings: ExpandSettings) -> Point:
    """Value of each axis at the start."""
    own = {name: getattr(settings.motion, name) for name in _options(settings.motion)}
    return {"seconds": round(settings.seconds, 6), "resolution": settings.resolution, **own}


def network_of(settings: ExpandSettings, point: Point) -> Network:
    """Network of a point."""
    own = {
        name: type(getattr(settings.motion, name))(point[name])
        for name in _options(settings.motion)
    }
    motion = dataclasses.replace(settings.motion, **own)
    return Network(motion, int(point["resolution"]), point["seconds"])


def axes_of(settings: ExpandSettings, largest_side: int) -> list[Axis]:
    """Axes in the order in which they are tried.

    Args:
        settings: of the search.
        largest_side: of the clips' frames in pixels: larger crops would show no more.

    Raises:
        UsageError: there is no axis of a name, or the start is no point of the axes.
    """
    motion = settings.motion
    axes = {name: _option_values(motion, name, -1) for name in motion.shrinking}
    axes |= {"seconds": _seconds(settings), "resolution": _resolutions(settings, largest_side)}
    axes |= {name: _option_values(motion, name, 1) for name in motion.growing}
    names = settings.axes or tuple(axes)
    for name in names:
        if name not in axes:
            raise UsageError(
                f"--axes: {motion.name} has no axis {name!r}; there are {', '.join(axes)}."
            )
    return [Axis(name, axes[name]) for name in dict.fromkeys(names)]


def _options(motion: MotionOptions) -> tuple[str, ...]:
    return (*motion.shrinking, *motion.growing)


def _seconds(settings: ExpandSettings) -> tuple[float, ...]:
    """Lengths of clips, of which a held-out scene has a whole number."""
    keys = settings.compose.seconds / KEY_SECONDS
    whole = round(keys) if abs(keys - round(keys)) < 1e-6 else 0
    lengths = [round(n * KEY_SECONDS, 6) for n in range(1, whole + 1) if whole % n == 0]
    start = round(settings.seconds, 6)
    if start not in lengths:
        raise UsageError(
            f"--seconds {settings.seconds:g}: a clip is a multiple of {KEY_SECONDS:g} s, and "
            f"--compose.seconds {settings.compose.seconds:g} is a multiple of a clip"
            f"{f': choose from {lengths}' if lengths else ''}."
        )
    return tuple(lengths[lengths.index(start) :])


def _resolutions(settings: ExpandSettings, largest_side: int) -> tuple[int, ...]:
    start = settings.resolution
    if start < 16 or start % 4 or start > largest_side:
        raise UsageError(
            f"--resolution {start}: a multiple of 4 from 16 to {largest_side}, the size of the "
            "clips' frames."
        )
    above = range(start // SIDE_STEP * SIDE_STEP + SIDE_STEP, largest_side + 1, SIDE_STEP)
    return start, *above


def _option_values(motion: MotionOptions, name: str, direction: int) -> tuple[float, ...]:
    """Values of an option from that of the start on, as far as the pathway takes them."""
    start: Any = getattr(motion, name)
    values = [start]
    while True:
        value = _next_value(values[-1], direction)
        if value > LARGEST_FACTOR * start:
            return tuple(values)
        try:
            dataclasses.replace(motion, **{name: value})
        except ValueError:  # out of the option's bounds
            return tuple(values)
        values.append(value)


def _next_value(value: float, direction: int) -> float:
    if isinstance(value, float):
        return (round(value / FRACTION_STEP) + direction) * FRACTION_STEP
    if direction < 0 or value < FINE:
        return value + direction
    step = FINE // 2
    return value // step * step + step
