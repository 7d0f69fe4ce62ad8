"""Metrics of the identity of tracks, from the overlaps of their masks with the truth.

A person and a track match in a frame if the IoU of their masks is at least 0.5.

- IDF1: Ristani, Solera, Zou, Cucchiara and Tomasi, "Performance Measures and a Data Set for
  Multi-Target, Multi-Camera Tracking" (2016), https://arxiv.org/abs/1609.01775: each person is
  assigned at most one track for the whole recording, so that the most frames match.
- Matches frame by frame, misses, false positives and identity switches: Bernardin and
  Stiefelhagen, "Evaluating Multiple Object Tracking Performance: The CLEAR MOT Metrics" (2008),
  https://doi.org/10.1155/2008/246309. A match lasts as long as the masks overlap enough, though
  another track overlaps more.
- Fragmentations: Li, Huang and Nevatia, "Learning to Associate: HybridBoosted Multi-Target Tracker
  for Crowded Scene" (2009): interruptions of a person's matches. Here only in frames in which the
  person is visible, so that an absence is none.

Shapes: T frames, P people, K tracks.
"""

import dataclasses

import numpy as np
from scipy.optimize import linear_sum_assignment

from cavmae.finetune.tracking.overlaps import MaskOverlaps

MIN_IOU = 0.5  # of a person and a track that match


@dataclasses.dataclass(frozen=True)
class TrackCounts:
    """Counts of one recording, or of several that are added up.

    Attributes:
        recordings: number of recordings.
        people: number of people who are visible in some frame.
        tracks: number of tracks that are visible in some frame.
        person_frames: frames of all people in which they are visible.
        track_frames: likewise of all tracks.
        identity_frames: frames in which a person matches the track assigned to them for the whole
            recording (identity true positives).
        matched_frames: frames in which a person matches any track, one to one in the frame.
        iou_sum: of the pairs of ``matched_frames``.
        switches: matches with another track than the person's match before.
        fragments: interruptions of a person's matches while they are visible.
    """

    recordings: int = 0
    people: int = 0
    tracks: int = 0
    person_frames: int = 0
    track_frames: int = 0
    identity_frames: int = 0
    matched_frames: int = 0
    iou_sum: float = 0.0
    switches: int = 0
    fragments: int = 0

    def __add__(self, other: "TrackCounts") -> "TrackCounts":
        fields = (field.name for field in dataclasses.fields(self))
        return TrackCounts(*(getattr(self, name) + getattr(other, name) for name in fields))

    @property
    def idf1(self) -> float | None:
        """Fraction of the frames of people and tracks with the right identity; None: no frame."""
        frames = self.person_frames + self.track_frames
        return 2 * self.identity_frames / frames if frames else None

    @property
    def iou(self) -> float | None:
        """Mean IoU of matched pairs; None: there is none."""
        return self.iou_sum / self.matched_frames if self.matched_frames else None

    @property
    def missed_frames(self) -> int:
        """Frames of visible people without a match."""
        return self.person_frames - self.matched_frames

    @property
    def false_frames(self) -> int:
        """Frames of visible tracks without a match."""
        return self.track_frames - self.matched_frames


def assign_tracks(overlaps: MaskOverlaps) -> dict[int, int]:
    """Track of each person for the whole recording, one to one, so that the most frames match.

    Returns:
        indices of tracks by those of people; people without a match in any frame are left out.
    """
    matches = (overlaps.iou >= MIN_IOU).sum(0)
    rows, columns = linear_sum_assignment(-matches)
    return {
        int(person): int(track)
        for person, track in zip(rows, columns, strict=True)
        if matches[person, track]
    }


def match_frames(overlaps: MaskOverlaps) -> np.ndarray:
    """Track that each person matches in each frame: int64 [T, P], -1: none.

    Matches of the frame before come first if they still hold; the others have the largest total
    IoU.
    """
    iou = overlaps.iou
    length, people, tracks = iou.shape
    matched = np.full((length, people), -1, dtype=np.int64)
    for frame in range(length):
        score = np.where(iou[frame] >= MIN_IOU, iou[frame], 0.0)
        if frame:
            held = matched[frame - 1]
            for person in np.flatnonzero(held >= 0):
                if score[person, held[person]]:
                    score[person, held[person]] += min(people, tracks)  # above any total of others
        for person, track in zip(*linear_sum_assignment(-score), strict=True):
            if score[person, track]:
                matched[frame, person] = track
    return matched


def count_tracks(overlaps: MaskOverlaps) -> TrackCounts:
    """Counts of a recording."""
    iou = overlaps.iou
    matched = match_frames(overlaps)
    visible = overlaps.people > 0
    frames, people = np.nonzero(matched >= 0)
    switches = fragments = 0
    for person in range(matched.shape[1]):
        of_person = matched[:, person][visible[:, person]]
        known = of_person[of_person >= 0]
        switches += int((known[1:] != known[:-1]).sum())
        starts = (of_person[1:] >= 0) & (of_person[:-1] < 0)
        before = np.cumsum(of_person >= 0)[:-1] > 0
        fragments += int((starts & before).sum())
    return TrackCounts(
        recordings=1,
        people=int(visible.any(0).sum()),
        tracks=int((overlaps.tracks > 0).any(0).sum()),
        person_frames=int(visible.sum()),
        track_frames=int((overlaps.tracks > 0).sum()),
        identity_frames=sum(
            int((iou[:, person, track] >= MIN_IOU).sum())
            for person, track in assign_tracks(overlaps).items()
        ),
        matched_frames=len(frames),
        iou_sum=float(iou[frames, people, matched[frames, people]].sum()),
        switches=switches,
        fragments=fragments,
    )
