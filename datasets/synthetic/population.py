"""Who there is: speakers with their voices, looks and splits."""

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
NEAREST = 3  # speakers of the nearest pitch count as of a kind,
NEAR = 0.25  # if they are no more octaves away


@dataclasses.dataclass(frozen=True)
class Speaker:
    """Somebody with a voice and a look that stay the same in all their clips.

    Attributes:
        id: unique name.
        split: the only one this speaker appears in.
        voice: how they sound.
        pitch_hz: median fundamental frequency.
        look: seed of the look: independent of the voice.
        family: seed that look-alikes share.
    """

    id: str
    split: str
    voice: Voice
    pitch_hz: float
    appearance_seed: int
    family: int

    def record(self) -> dict[str, Any]:
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {**values, "voice": voices.to_record(self.voice)}

    @classmethod
    def from_record(cls, record: dict[str, Any], speech: str | None) -> "Speaker":
        """
        Args:
            speech: folder of recordings.
        """
        return cls(**{**record, "voice": voices.from_record(record["voice"], speech)})


def rng_for(*parts: int | str) -> np.random.Generator:
    """Random numbers that depend on these values and nothing else."""
    text = "/".join(map(str, parts)).encode()
    return np.random.default_rng(int.from_bytes(hashlib.sha256(text).digest()[:16], "big"))


class Population:
    """All speakers of a corpus, and which of them a clip shows."""

    def __init__(self, speakers: Sequence[Speaker], seed: int):
        self.speakers = tuple(speakers)
        self._seed = seed
        self._named = {s.id: s for s in speakers}

    @classmethod
    def from_voices(
        cls, settings: RenderSettings, sounding: Mapping[str, tuple[Voice, float]]
    ) -> "Population":
        """Gives voices a split and a look.

        Args:
            sounding: speaker: (voice, median pitch in Hz).

        Raises:
            UsageError: too few speakers for the splits and scenes asked for.
        """
        ids = sorted(sounding)
        order = [ids[i] for i in rng_for(settings.seed, "splits").permutation(len(ids))]
        counts = _split(len(ids), settings.valid_share, settings.test_share)
        _, most = settings.people_range
        for split, count in zip(SPLITS, counts, strict=True):
            if count is not None and count < most:
                raise UsageError(
                    f"Split {split} has {count} of {len(ids)} speakers, but pictures show "
                    f"up to {most}: have more speakers, or let --valid-share and --test-share "
                    f"be 0 or at least {most / len(ids) + 0.005:.2f}, and leave that for train."
                )
        pairs = most > 1 and settings.look_alikes > 0
        speakers = []
        for split in SPLITS:
            count = counts.pop(0) or 0
            mine, order = order[:count], order[count:]
            for place, name in enumerate(mine):
                family = mine[place - place % 2] if pairs else name
                voice, pitch = sounding[name]
                speakers.append(
                    Speaker(
                        name, split, voice, pitch,
                        appearance_seed=_number(settings.seed, "look", name),
                        family=_number(settings.seed, "family", family),
                    )
                )  # fmt: skip
        return cls(sorted(speakers, key=lambda s: s.id), settings.seed)

    def __getitem__(self, name: str) -> Speaker:
        return self._named[name]

    def main_speaker(self, clip: int) -> Speaker:
        """Whose clip it is: everybody's turn comes once in as many clips as there are speakers."""
        turn, place = divmod(clip, len(self.speakers))
        order = rng_for(self._seed, "turn", turn).permutation(len(self.speakers))
        return self.speakers[int(order[place])]

    def others(self, speaker: Speaker, taken: Sequence[Speaker] = ()) -> list[Speaker]:
        """The speakers of the same split, less this one and those taken."""
        out = {speaker.id, *(s.id for s in taken)}
        return [s for s in self.speakers if s.split == speaker.split and s.id not in out]

    def look_alike(self, speaker: Speaker) -> Speaker | None:
        """Somebody who looks nearly the same."""
        return next((s for s in self.others(speaker) if s.family == speaker.family), None)

    def similar_voice(self, speaker: Speaker, rng: np.random.Generator) -> Speaker | None:
        """Somebody whose pitch is among the nearest, and near; None if there is nobody."""

        def apart(other: Speaker) -> float:
            return abs(math.log2(max(other.pitch_hz, 1.0) / max(speaker.pitch_hz, 1.0)))

        near = [s for s in sorted(self.others(speaker), key=apart)[:NEAREST] if apart(s) <= NEAR]
        return near[int(rng.integers(len(near)))] if near else None


def _split(count: int, valid: float, test: float) -> list[int | None]:
    """Speakers of train, valid and test; None for a split that nobody asked for."""
    last = round(count * (1 - test))
    first = round(count * (1 - valid - test))
    train = first if 1 - valid - test > 1e-9 else None
    return [train, last - first if valid > 0 else None, count - last if test > 0 else None]


def _number(*parts: int | str) -> int:
    return int(rng_for(*parts).integers(2**62))
