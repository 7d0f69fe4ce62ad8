"""Selection of the people of a separation: all who last, or the target alone."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from cavmae.common.errors import CavmaeError
from cavmae.datasets.stream.rates import VIDEO_RATE
from cavmae.finetune.inference.first_pass import FirstPass, Sighting
from cavmae.finetune.inference.movement import stands_still
from cavmae.finetune.inference.predictor import Cue
from cavmae.finetune.inference.records import boxes_of, visible_frames
from cavmae.finetune.speaker.voice_matching import AUDIBLE

NEAR_CUE = 0.03  # fraction of a frame's sides by which masks may miss a cue


class SelectedPeople(NamedTuple):
    """People who are separated.

    Attributes:
        people: sightings of each, by number of the first pass.
        remarks: sentences about those who are left out since they stand still, and about a target
            who is elsewhere.
    """

    people: dict[int, list[Sighting]]
    remarks: tuple[str, ...] = ()


def select_people(
    recording: FirstPass, min_seconds: float, min_movement_fraction: float, cue: Cue | None
) -> SelectedPeople:
    """The target alone, or the people who are visible long enough, and move.

    Args:
        recording: result of the first pass.
        min_seconds: shortest visible time of a person.
        min_movement_fraction: least mean movement of a person, as a fraction of their height; a
            target may stand still.
        cue: cue for the target; None: there is no target.

    Raises:
        CavmaeError: no person matches the target.
    """
    # A recording of a single window gives the people of its forward pass.
    min_frames = (
        min(min_seconds * VIDEO_RATE, recording.frames / 2)
        if recording.frames > recording.length
        else 0
    )
    lasting = {
        n: s
        for n, s in recording.people.items()
        if visible_frames(recording, s).sum() >= min_frames
    }
    if cue is None:
        moving = {
            n: sightings
            for n, sightings in lasting.items()
            if not stands_still([s.movement for s in sightings], min_movement_fraction)
        }
        still = (s for n, s in lasting.items() if n not in moving)
        return SelectedPeople(moving, tuple(_remark_on_still(recording, s) for s in still))
    if cue.kind == "voice":
        return SelectedPeople(match_reference_voice(lasting))
    cued_prob = {
        n: sum(s.presence_prob for s in sightings if s.cued)
        for n, sightings in recording.people.items()
    }
    best = max(cued_prob, key=lambda n: cued_prob[n], default=None)
    if best is None or not cued_prob[best]:
        raise CavmaeError(
            f"No person matches the {cue.kind} at {cue.time:g} s: name another time, or another "
            "cue."
        )
    target = recording.people[best]
    remarks: tuple[str, ...] = ()
    if not is_at(recording, target, cue):
        remarks = (
            f"no mask is at the {cue.kind} at {cue.time:g} s; this is the person that the model "
            "takes for the target all the same, so look at the overlay",
        )
    return SelectedPeople({best: target}, remarks)


def is_at(recording: FirstPass, sightings: list[Sighting], cue: Cue) -> bool:
    """Whether a mask of a cued person, near the time of the cue, reaches into its box or point."""
    for sighting in sightings:
        if not sighting.cued:
            continue
        start = recording.starts[sighting.window]
        distance = np.abs(start + recording.keys - cue.time * VIDEO_RATE)
        near = distance <= distance.min() + np.diff(recording.keys, prepend=0).max()
        mask = recording.masks(sighting)[near].max(0) > 127
        left, top, right, bottom = sighting.box
        height, width = mask.shape
        x = (np.array([cue.box[0] - NEAR_CUE, cue.box[2] + NEAR_CUE]) - left) / (right - left)
        y = (np.array([cue.box[1] - NEAR_CUE, cue.box[3] + NEAR_CUE]) - top) / (bottom - top)
        columns, rows = (
            slice(max(0, math.floor(a * side)), max(0, math.ceil(b * side)))
            for (a, b), side in ((x, width), (y, height))
        )
        if mask[rows, columns].any():
            return True
    return False


def _remark_on_still(recording: FirstPass, sightings: list[Sighting]) -> str:
    options = "--thresholds.min-movement-fraction 0 keeps everybody"
    first = next(iter(boxes_of(recording, sightings).items()), None)
    if first is not None:
        time, box = first
        place = ",".join(f"{edge:g}" for edge in box)
        options += f", --target.box {place} --target.time {time:.2f} separates them alone"
    return (
        "somebody who stands still while the picture moves, as furniture and posters do, is left "
        f"out ({options})"
    )


def match_reference_voice(people: Mapping[int, list[Sighting]]) -> dict[int, list[Sighting]]:
    """The person whose voice is nearest to a reference voice, weighted by power over windows.

    Raises:
        CavmaeError: no person has an audible voice.
    """
    compared = {
        n: [(s.power, s.voice_distance) for s in sightings if s.voice_distance is not None]
        for n, sightings in people.items()
    }
    # The largest power over windows: a rare voice is audible in few of them.
    largest = {n: max((power for power, _ in pairs), default=0.0) for n, pairs in compared.items()}
    loudest = max(largest.values(), default=0.0)
    distances = {
        n: sum(power * distance for power, distance in pairs) / sum(power for power, _ in pairs)
        for n, pairs in compared.items()
        if largest[n] > 0 and largest[n] >= AUDIBLE * loudest
    }
    if not distances:
        raise CavmaeError(
            "No person has an audible voice to compare with the reference voice: give another cue."
        )
    best = min(distances, key=lambda n: distances[n])
    return {best: people[best]}
