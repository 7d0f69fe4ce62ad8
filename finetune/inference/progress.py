"""Progress callbacks of a separation: the fraction that is done."""

from collections.abc import Callable

ProgressCallback = Callable[[float], None]  # called with the fraction done, from 0 to 1


def ignore_progress(fraction: float) -> None:
    """Progress callback that does nothing."""


def part_of(progress: ProgressCallback, start: float, end: float) -> ProgressCallback:
    """Progress callback of a part of the work, which leads from one fraction to another."""

    def report(fraction: float) -> None:
        progress(start + fraction * (end - start))

    return report
