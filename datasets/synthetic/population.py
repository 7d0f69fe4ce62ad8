"""Speakers of a corpus with their voices, appearances and splits."""

import dataclasses
import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cavmae.common.errors import UsageError
from cavmae.datasets.synthetic import voices
from cavmae.datasets.synthetic.settings import RenderSettings
from cavmae.datasets.synthetic.voices import Voice

SPLITS = ("train", "valid", "test")
NEAREST = 3  # speakers of the nearest pitch have a similar voice,
NEAR = 0.25  # within so many octaves


@dataclasses.dataclass(frozen=True)
class Speaker:
    """A speaker with one voice and one appearance in all their clips.

    Attributes:
        id: unique name.
        split: the only one this speaker appears in.
        voice: parameters or recordings.
        pitch_hz: median fundamental frequency.
        appearance_seed: independent of the voice.
        family: seed that look-alikes share.
    """

    id: str
    split: str
    voice: Voice
    pitch_hz: float
    appearance_seed: int
    family: int

    def record(self) -> dict[str, Any]:
        """JSON object of ``speakers.json``."""
        return {
            "id": self.id,
            "split": self.split,
            "voice": voices.to_record(self.voice),
            "pitch_hz": self.pitch_hz,
            "look": self.appearance_seed,
            "family": self.family,
        }

    @classmethod
    def from_record(cls, record: dict[str, Any], speech: str | None) -> "Speaker":
        """Speaker from a JSON object of ``speakers.json``.

        Args:
            speech: folder of recordings.

        Raises:
            KeyError: a field is missing.
            TypeError: a field is missing or unknown.
        """
        fields = {**record, "voice": voices.from_record(record["voice"], speech)}
        return cls(appearance_seed=fields.pop("look"), **fields)


def rng_for(*parts: int | str) -> np.random.Generator:
    """Random generator seeded by these values and nothing else."""
    text = "/".join(map(str, parts)).encode()
    return np.random.default_rng(int.from_bytes(hashlib.sha256(text).digest()[:16], "big"))


class Population:
    """All speakers of a corpus, and the main speaker of every clip."""

    def __init__(self, speakers: Sequence[Speaker], seed: int):
        self.speakers = tuple(speakers)
        self._seed = seed
        self._by_id = {s.id: s for s in speakers}

    @classmethod
    def from_voices(
        cls, settings: RenderSettings, speaker_voices: Mapping[str, tuple[Voice, float]]
    ) -> "Population":
        """Assign a split and an appearance to every voice.

        Args:
            speaker_voices: (voice, median pitch in Hz) by speaker id.

        Raises:
            UsageError: too few speakers for the splits and scenes asked for.
        """
        ids = sorted(speaker_voices)
        order = [ids[i] for i in rng_for(settings.seed, "splits").permutation(len(ids))]
        counts = _split(len(ids), settings.valid_share, settings.test_share)
        _, most = settings.people_range
        for split, count in zip(SPLITS, counts, strict=True):
            if count is not None and count < most:
                raise UsageError(
                    f"Split {split} has {count} of {len(ids)} speakers, but clips show "
                    f"up to {most}: have more speakers, or let --valid-share and --test-share "
                    f"be 0 or at least {most / len(ids) + 0.005:.2f}, and leave that for train."
                )
        pairs = most > 1 and settings.look_alikes > 0
        speakers = []
        for split in SPLITS:
            count = counts.pop(0) or 0
            ids_of_split, order = order[:count], order[count:]
            for place, name in enumerate(ids_of_split):
                family = ids_of_split[place - place % 2] if pairs else name
                voice, pitch = speaker_voices[name]
                speakers.append(
                    Speaker(
                        name, split, voice, pitch,
                        appearance_seed=_draw_seed(settings.seed, "look", name),
                        family=_draw_seed(settings.seed, "family", family),
                    )
                )  # fmt: skip
        return cls(sorted(speakers, key=lambda s: s.id), settings.seed)

    def __getitem__(self, name: str) -> Speaker:
        return self._by_id[name]

    def main_speaker(self, clip: int) -> Speaker:
        """Main speaker of a clip: every speaker once in as many clips as there are speakers."""
        turn, place = divmod(clip, len(self.speakers))
        order = rng_for(self._seed, "turn", turn).permutation(len(self.speakers))
        return self.speakers[int(order[place])]

    def others(self, speaker: Speaker, taken: Sequence[Speaker] = ()) -> list[Speaker]:
        """Speakers of the same split, less this one and those taken."""
        excluded = {speaker.id, *(s.id for s in taken)}
        return [s for s in self.speakers if s.split == speaker.split and s.id not in excluded]

    def look_alike(self, speaker: Speaker) -> Speaker | None:
        """Another speaker of the same family of appearances; None if there is none."""
        return next((s for s in self.others(speaker) if s.family == speaker.family), None)

    def similar_voice(self, speaker: Speaker, rng: np.random.Generator) -> Speaker | None:
        """Random speaker among the nearest in pitch, within :data:`NEAR`; None if there is none."""

        def pitch_distance(other: Speaker) -> float:
            return abs(math.log2(max(other.pitch_hz, 1.0) / max(speaker.pitch_hz, 1.0)))

        nearest = sorted(self.others(speaker), key=pitch_distance)[:NEAREST]
        near = [s for s in nearest if pitch_distance(s) <= NEAR]
        return near[int(rng.integers(len(near)))] if near else None


def _split(count: int, valid: float, test: float) -> list[int | None]:
    """Numbers of speakers of train, valid and test; None for a split without a share."""
    last = round(count * (1 - test))
    first = round(count * (1 - valid - test))
    train = first if 1 - valid - test > 1e-9 else None
    return [train, last - first if valid > 0 else None, count - last if test > 0 else None]


def _draw_seed(*parts: int | str) -> int:
    return int(rng_for(*parts).integers(2**62))
