"""Distribution of mixtures of recordings with articulation cues. Imports no PyTorch."""

import dataclasses

from cavmae.common.errors import UsageError

# Probabilities that do not grow: of what makes more voices and cues out of few.
STEADY = ("speed_prob", "pitch_prob", "spoiled_prob", "gap_prob", "moving_prob")


@dataclasses.dataclass(frozen=True)
class SoundSettings:
    """Distribution of mixtures of voices and noise, without pictures.

    Args:
        seconds: length of a mixture, a multiple of 0.16.
        voices: people with a cue in each mixture; not all of them are audible.
        silent_prob: probability that a person is not heard at all.
        moving_prob: probability that the mouth of a person moves, like another talker's, while
            their voice is silent.
        off_screen_prob: probability of a further voice, without a cue.
        partial_prob: probability that voices begin or end within the mixture.
        level_db: largest gain or attenuation of a voice.
        noise_prob: probability of noise.
        min_noise_db: smallest ratio of voices to noise.
        max_noise_db: largest ratio of voices to noise.
        speed_prob: probability that the speed of a voice is changed, by resampling, and with it the
            pitch.
        max_speed: largest factor of the speed, and inverse of the smallest; in steps of 2.5 %.
        pitch_prob: probability that the pitch of a voice, with its formants, is drawn apart from
            the speed, in steps of 10 % both; needs a phase vocoder.
        max_pitch: largest factor of such a pitch, and inverse of the smallest.
        equaliser_prob: probability that a voice is equalised.
        equaliser_db: largest gain of an equaliser's band.
        room_prob: probability of reverberation, in a shoebox room of 0.15 to 0.6 s.
        codec_prob: probability that a voice comes through a codec: a band limit of 3.4, 5 or 7 kHz
            and the mu-law of 5 to 8 bits.
        spoiled_prob: probability that a cue is spoiled as a reading of real lips would be.
        jitter_ms: largest shift of a spoiled cue.
        cue_noise: largest standard deviation of a spoiled cue's noise.
        gap_prob: probability of a gap in a spoiled cue.
        ramp: fraction of training over which the probabilities grow from 0 to their values, but for
            speeds, pitches and spoiled cues: two voices that talk all the time come first.
    """

    seconds: float = 2.56
    voices: int = 2
    silent_prob: float = 0.1
    moving_prob: float = 0.5
    off_screen_prob: float = 0.1
    partial_prob: float = 0.25
    level_db: float = 5.0
    noise_prob: float = 0.5
    min_noise_db: float = 0.0
    max_noise_db: float = 25.0
    speed_prob: float = 0.8
    max_speed: float = 1.25
    pitch_prob: float = 0.3
    max_pitch: float = 1.25
    equaliser_prob: float = 0.5
    equaliser_db: float = 8.0
    room_prob: float = 0.3
    codec_prob: float = 0.1
    spoiled_prob: float = 0.7
    jitter_ms: float = 80.0
    cue_noise: float = 0.15
    gap_prob: float = 0.3
    ramp: float = 0.3

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name.endswith("_prob") and not 0 <= value <= 1:
                raise UsageError(f"mix.{field.name} {value} is not from 0 to 1.")
        if not 0.32 <= self.seconds <= 60 or round(self.seconds * 10000) % 1600:
            raise UsageError(f"mix.seconds {self.seconds} is not a multiple of 0.16 up to 60.")
        if not 1 <= self.voices <= 8:
            raise UsageError(f"mix.voices {self.voices} is not from 1 to 8.")
        for name in ("max_speed", "max_pitch"):
            if not 1 <= getattr(self, name) <= 2:
                raise UsageError(f"mix.{name} {getattr(self, name)} is not from 1 to 2.")
        if not 0 <= self.ramp <= 1:
            raise UsageError(f"mix.ramp {self.ramp} is not from 0 to 1.")
        if self.min_noise_db > self.max_noise_db:
            raise UsageError("mix.min_noise_db is above mix.max_noise_db.")

    @property
    def samples(self) -> int:
        """S, the samples of a mixture at 16 kHz."""
        return round(self.seconds * 16_000)

    def at(self, progress: float) -> "SoundSettings":
        """Distribution at a fraction of training."""
        share = min(1.0, progress / self.ramp) if self.ramp else 1.0
        eased = {
            field.name: share * getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name.endswith("_prob") and field.name not in STEADY
        }
        return dataclasses.replace(self, **eased)

    def talking(self, spoiled: bool) -> "SoundSettings":
        """All people talk all the time, without noise, rooms and resampling: for measuring.

        Two voices differ by at most 5 dB.
        """
        off = {
            field.name: 0.0 for field in dataclasses.fields(self) if field.name.endswith("_prob")
        }
        off |= {"gap_prob": self.gap_prob, "spoiled_prob": float(spoiled), "level_db": 2.5}
        return dataclasses.replace(self, **off)  # type: ignore[arg-type]
