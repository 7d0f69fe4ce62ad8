"""Data sets that a run learns from, and their weights.

Imports neither PyTorch nor libraries of audio: the help of commands goes without them.
"""

import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from cavmae.common.errors import UsageError
from cavmae.common.files import is_url

if TYPE_CHECKING:
    from cavmae.datasets.format.manifest import Manifest

# Of an option: a folder or URL; or a list of these, or of tables with `path` and `weight`.
WeightedPaths = list[str | dict[str, str | float]] | str
KEYS = {"path", "weight"}
MOVING_RATE = 10  # frames a second from which frames show motion


class WeightedSet(NamedTuple):
    """A data set of a mixture.

    Attributes:
        path: folder or URL of its shards.
        weight: of its samples, relative to those of the other data sets; above 0.
    """

    path: str
    weight: float = 1.0


def weighted_sets(value: WeightedPaths, option: str) -> tuple[WeightedSet, ...]:
    """Data sets that an option names; none, if it is empty.

    Args:
        value: of the option.
        option: its name, for errors.

    Raises:
        UsageError: an entry is no path or table, a weight is not above 0, or a data set is there
            twice.
    """
    if isinstance(value, str):
        return (WeightedSet(value),) if value else ()
    sets = tuple(_weighted_set(entry, option) for entry in value)
    known: set[str] = set()
    for path, _ in sets:
        identity = _identity(path)
        if identity in known:
            raise UsageError(
                f"{option} names the data set {path} twice: name it once, with a larger weight if "
                "its samples are to come more often."
            )
        known.add(identity)
    return sets


def _weighted_set(entry: Any, option: str) -> WeightedSet:
    table = entry if isinstance(entry, dict) else {"path": entry}
    path, weight = table.get("path"), table.get("weight", 1.0)
    if not set(table) <= KEYS or not isinstance(path, str) or not path:
        raise UsageError(
            f"{option}: {entry!r} is no data set: write its folder or URL, or a table such as "
            "{path: FOLDER, weight: 2}, with quotes around a path that is a number."
        )
    number = isinstance(weight, int | float) and not isinstance(weight, bool)
    if not number or not 0 < weight < math.inf:
        raise UsageError(
            f"{option}: the weight {weight!r} of {path} is not a number above 0: correct it, or "
            "leave the data set out."
        )
    return WeightedSet(path, float(weight))


def _identity(path: str) -> str:
    """Equal for paths of the same data set."""
    from cavmae.datasets.format.manifest import NAME

    folder = path.removesuffix(NAME)
    return folder.rstrip("/") if is_url(path) else os.path.realpath(folder or ".")


def load_manifests(sets: Sequence[WeightedSet]) -> "list[Manifest]":
    """Manifests of data sets.

    Raises:
        ShardError: a manifest is missing or damaged, or has another schema.
    """
    from cavmae.datasets.format.manifest import Manifest

    return [Manifest.load(own.path) for own in sets]


def check_mixable(manifests: "Sequence[Manifest]", waveforms: bool, motion: bool) -> None:
    """Checks that data sets hold what a batch needs of each of its samples.

    Sizes of frames, lengths of clips and labels may differ: a run brings them to its own. What a
    manifest does not say is not checked.

    Args:
        manifests: of the data sets.
        waveforms: the run reads them.
        motion: the run reads frames that follow each other.

    Raises:
        UsageError: a data set lacks what another has.
    """
    if waveforms:
        stored = [(m.folder, bool(m.settings.get("waveform", True))) for m in manifests]
        with_waves = [folder for folder, there in stored if there]
        without = [folder for folder, there in stored if not there]
        if with_waves and without:
            raise UsageError(
                f"{with_waves[0]} has waveforms, {without[0]} has none, and this run "
                "needs those of every clip: shard it again with waveforms, or leave it out."
            )
    if motion:
        rates = [(m.folder, rate) for m in manifests if (rate := _frame_rate(m)) is not None]
        moving = [own for own in rates if own[1] >= MOVING_RATE]
        still = [own for own in rates if own[1] < MOVING_RATE]
        if moving and still:
            raise UsageError(
                f"{moving[0][0]} has {moving[0][1]:.3g} frames a second, {still[0][0]} has "
                f"{still[0][1]:.3g}, and this run needs frames that show motion: shard the latter "
                "again with --profile speakers, or leave it out."
            )


def _frame_rate(manifest: "Manifest") -> float | None:
    """Frames a second of the clips according to the settings of their shards; None: unknown."""
    settings = manifest.settings
    rate, frames, seconds = (settings.get(k) for k in ("frame_rate", "frames", "clip_seconds"))
    if isinstance(rate, int | float):
        return float(rate)
    if isinstance(frames, int) and isinstance(seconds, int | float) and seconds > 0:
        return frames / seconds
    return None
