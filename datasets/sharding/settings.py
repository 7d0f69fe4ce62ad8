"""Settings of `cavmae shard`: profiles, every value of which can be overridden."""

import dataclasses
from typing import Literal

from cavmae.common.errors import UsageError
from cavmae.common.remote import DEFAULT_LIMITS
from cavmae.common.settings import LimitedPoolSettings

JPEG_QUALITY = 90  # of stored frames
MAX_MISSING = (
    0.1  # largest fraction of a clip's frames that may fail to decode; else it is left out
)
SHARD_BYTES = 256e6  # of a shard at most; a single sample may be larger
SHARD_NAME = "clips"  # prefix of the shards' file names

Tail = Literal["drop", "share"]
Crop = Literal["square", "patches"]


@dataclasses.dataclass(frozen=True)
class Profile:
    """Values of the options that a profile sets; see :class:`ShardSettings`."""

    clip_seconds: float
    min_seconds: float
    tail: Tail
    frames: int | None
    frame_rate: float | None
    crop: Crop


PROFILES = {
    "events": Profile(
        clip_seconds=10.0, min_seconds=2.0, tail="drop", frames=10, frame_rate=None, crop="square"
    ),
    "speakers": Profile(
        clip_seconds=5.12, min_seconds=2.56, tail="share", frames=None, frame_rate=25.0,
        crop="patches",
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ShardSettings:
    """Format of samples. Empty settings take the profile's values.

    Args:
        profile: ``events``: 10 s clips of 10 frames, 224x224 from the middle. ``speakers``: 25
            frames a second of the whole frame, clips of 2.56 to 5.12 s.
        clip_seconds: length of a clip; long videos are cut into consecutive clips.
        min_seconds: shorter clips are left out.
        tail: treatment of a remainder shorter than ``min_seconds``: ``drop`` it, or ``share``:
            it and the clip before become two of equal length.
        frames: number of frames of a clip, evenly spaced in time.
        frame_rate: instead of ``frames``: frames a second at most; slower videos keep their own.
        shorter_side: pixels of the shorter side of a frame.
        crop: ``square``: the middle square. ``patches``: the whole frame, both sides cut to
            multiples of 16.
        video_stream: number of the video stream to read, as `ffprobe` counts the streams; empty:
            the one that players choose.
        audio_stream: likewise of the audio stream; empty: the one that players choose.
        downmix: of the audio channels: their ``mean`` (of more than two by the usual weights), or
            the ``first`` as the CAV-MAE reference.
        waveform: keep the 16 kHz waveform (FLAC) as well as the fbank.
        decoder: ``auto`` is PyAV for every file; ``decord`` reads plain MP4 and Matroska files.
        shard_samples: samples in a shard at most; of large samples, as many as take 256 MB.
    """

    profile: str = "events"
    clip_seconds: float | None = None
    min_seconds: float | None = None
    tail: Tail | None = None
    frames: int | None = None
    frame_rate: float | None = None
    shorter_side: int = 224
    crop: Crop | None = None
    video_stream: int | None = None
    audio_stream: int | None = None
    downmix: Literal["mean", "first"] = "mean"
    waveform: bool = True
    decoder: Literal["auto", "decord", "pyav"] = "auto"
    shard_samples: int = 1000

    def resolved(self) -> "ShardSettings":
        """Settings with the profile's values in the empty fields.

        Raises:
            UsageError: a value is out of range.
        """
        if self.frames is not None and self.frame_rate is not None:
            raise UsageError("Give either --frames or --frame-rate, not both.")
        if self.profile not in PROFILES:
            raise UsageError(
                f"--profile {self.profile[:100]}: there is no such profile; there are "
                f"{', '.join(PROFILES)}."
            )
        values = dataclasses.asdict(PROFILES[self.profile])
        if self.frames is not None or self.frame_rate is not None:
            values["frames"] = values["frame_rate"] = None
        given = {k: v for k, v in dataclasses.asdict(self).items() if v is not None}
        settings = ShardSettings(**{**values, **given})
        settings._check()
        return settings

    def _check(self) -> None:
        assert self.clip_seconds is not None and self.min_seconds is not None
        ranges = {
            "clip_seconds": 0.1 <= self.clip_seconds <= 3600,
            "min_seconds": 0.1 <= self.min_seconds <= self.clip_seconds,
            "frames": self.frames is None or 1 <= self.frames <= 100_000,
            "frame_rate": self.frame_rate is None or 0 < self.frame_rate <= 1000,
            "shorter_side": 16 <= self.shorter_side <= 2048,
            "shard_samples": self.shard_samples >= 1,
        }
        for name, good in ranges.items():
            if not good:
                option = name.replace("_", "-")
                raise UsageError(f"--{option} {getattr(self, name)} is out of range.")
        if self.shorter_side % 16:
            raise UsageError(f"--shorter-side {self.shorter_side} is not a multiple of 16.")


@dataclasses.dataclass(frozen=True)
class ShardRunSettings(LimitedPoolSettings):
    """Settings of a run that do not change the samples.

    Args:
        download_gb: size of a remote input above which it is skipped, in 10^9 bytes.
        stall_seconds: a download is aborted if less than 1 MB arrives in this time, an upload if
            it sends no part (8 MB, smaller files 16 MB) in it.
        local_folder: with a remote ``--out``: folder of this machine in which the data set is
            built, and which has to stay for reruns; sealed shards move from it to ``--out``.
        part: I/N: process the I-th of N shares of the inputs on this machine; ``auto``: the share
            of this task of a Slurm array.
        keep_order: keep the order in which inputs are named; by default they are shuffled, so that
            neighbours in a shard are unrelated.
        retry_skipped: try the inputs and clips again that an earlier run skipped.
        executor: of the inputs: processes of this machine, or tasks of a ``ray`` cluster, whose
            nodes see inputs and output (the local folder of a remote ``--out``) at the same paths;
            ``workers`` are then tasks in flight (0: two for each CPU of the cluster, of which at
            most 256 wait for one), for each of which it is asked for a CPU and ``memory_gb``.
        ray_address: of the cluster's head node; ``auto``: the cluster that runs on this machine.
        stretch_minutes: a local input with more minutes of clips is split into stretches of about
            this length, which several workers extract at once, with the same samples; 0: it is not.
    """

    download_gb: float = DEFAULT_LIMITS.size / 1e9
    stall_seconds: float = DEFAULT_LIMITS.stall_seconds
    local_folder: str | None = None
    part: str | None = None
    keep_order: bool = False
    retry_skipped: bool = False
    executor: Literal["local", "ray"] = "local"
    ray_address: str = "auto"
    stretch_minutes: float = 10.0

    def __post_init__(self) -> None:
        if self.ray_address != "auto" and self.executor != "ray":
            raise UsageError("--ray-address is for --executor ray: give both.")
