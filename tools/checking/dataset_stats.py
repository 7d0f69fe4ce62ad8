"""Data-set statistics: verifies every sample of a shard and sums up its content."""

import dataclasses
import math
from collections import Counter
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from cavmae.common.errors import SampleError, ShardError
from cavmae.common.files import Cache, is_url
from cavmae.datasets.format import sample
from cavmae.datasets.format.manifest import Manifest, ShardEntry
from cavmae.datasets.format.sample import SampleInfo
from cavmae.datasets.format.shards import Entry, Shard
from cavmae.datasets.stream.features import MEL_BINS, SAMPLE_RATE, fbank_frames

# An fbank frame is silent if no mel bin reaches this: about noise at -60 dB full scale.
QUIET = -8.0
# A clip is silent if at most this fraction of its fbank frames is not.
SOUNDING = 0.01


class Damage(NamedTuple):
    """Damage of a shard or, where ``key`` is given, of one of its samples."""

    shard: str
    key: str
    reason: str
    detail: str


@dataclasses.dataclass
class Survey:
    """Statistics and damage of a data set, or of a part of it. Adds up with ``+=``.

    Attributes:
        samples, seconds: number and duration of intact samples.
        frames, masks: numbers of stored images.
        fbank_count, fbank_sum, fbank_squares: over all values of all fbanks.
        quiet_frames, fbank_rows: silent rows of fbanks, and all rows.
        silent: number of silent clips.
        missing_frames: frames that could not be decoded when the shards were written.
        labels, speakers, frame_rates, sizes, decoders: counts of samples.
        keys: of all samples, to find repeated ones.
        damage: of shards and samples.
    """

    samples: int = 0
    seconds: float = 0.0
    frames: int = 0
    masks: int = 0
    fbank_count: int = 0
    fbank_sum: float = 0.0
    fbank_squares: float = 0.0
    quiet_frames: int = 0
    fbank_rows: int = 0
    silent: int = 0
    missing_frames: int = 0
    labels: Counter[str] = dataclasses.field(default_factory=Counter)
    speakers: Counter[str] = dataclasses.field(default_factory=Counter)
    frame_rates: Counter[str] = dataclasses.field(default_factory=Counter)
    sizes: Counter[str] = dataclasses.field(default_factory=Counter)
    decoders: Counter[str] = dataclasses.field(default_factory=Counter)
    keys: list[str] = dataclasses.field(default_factory=list)
    damage: list[Damage] = dataclasses.field(default_factory=list)

    def __iadd__(self, other: "Survey") -> "Survey":
        for field in dataclasses.fields(self):
            value, more = getattr(self, field.name), getattr(other, field.name)
            if isinstance(value, Counter):
                value.update(more)
            elif isinstance(value, list):
                value.extend(more)
            else:
                setattr(self, field.name, value + more)
        return self

    @property
    def fbank_mean(self) -> float:
        return self.fbank_sum / self.fbank_count if self.fbank_count else math.nan

    @property
    def fbank_std(self) -> float:
        if not self.fbank_count:
            return math.nan
        return math.sqrt(max(0.0, self.fbank_squares / self.fbank_count - self.fbank_mean**2))

    def add(self, info: SampleInfo, fbank: np.ndarray, masks: int) -> None:
        """Add an intact sample."""
        self.samples += 1
        self.seconds += info.duration
        self.frames += len(info.frame_times)
        self.masks += masks
        values = fbank.astype(np.float64)
        self.fbank_count += values.size
        self.fbank_sum += float(values.sum())
        self.fbank_squares += float(np.square(values).sum())
        quiet = int((fbank.max(axis=1) < QUIET).sum()) if len(fbank) else 0
        self.quiet_frames += quiet
        self.fbank_rows += len(fbank)
        self.silent += quiet > (1 - SOUNDING) * len(fbank)
        self.missing_frames += info.missing_frames
        self.labels.update(info.labels)
        if info.speaker is not None:
            self.speakers[info.speaker] += 1
        rate = len(info.frame_times) / info.duration
        self.frame_rates[f"{rate:.3g}"] += 1
        self.sizes[f"{info.frame_size[1]}x{info.frame_size[0]}"] += 1
        self.decoders[info.decoder or "unknown"] += 1


def survey_shard(
    manifest: Manifest, entry: ShardEntry, verify: Literal["hash", "size"], cache: Cache | None
) -> Survey:
    """Read all of one shard. Damage is part of the result."""
    survey = Survey()
    problem = manifest.problem_with(entry, verify)
    if problem is not None:
        survey.damage.append(Damage(entry.file, "", "bad_shard", problem))
        if "missing" in problem:
            return survey
    try:
        name = manifest.path_of(entry)
        if is_url(name):
            assert cache is not None
            path = cache.fetch(name, entry.sha256)
        else:
            path = Path(name)
        with Shard(path) as shard:
            if len(shard.entries) != entry.samples:
                survey.damage.append(
                    Damage(
                        entry.file,
                        "",
                        "bad_count",
                        f"{len(shard.entries)} samples, the manifest says {entry.samples}",
                    )
                )
            for sample_entry in shard.entries:
                survey.keys.append(sample_entry.key)
                try:
                    survey.add(*check_sample(shard, sample_entry))
                except SampleError as error:
                    survey.damage.append(
                        Damage(entry.file, sample_entry.key, error.reason, error.detail)
                    )
    except ShardError as error:
        survey.damage.append(Damage(entry.file, "", "bad_shard", str(error)))
    return survey


def check_sample(shard: Shard, entry: Entry) -> tuple[SampleInfo, np.ndarray, int]:
    """Decode all members of a sample and compare them with its json.

    Returns:
        its info, its fbank float16 [frames, 128], and its number of masks.

    Raises:
        SampleError: a member is missing, damaged or inconsistent.
    """
    info = SampleInfo.from_bytes(shard.read(entry, "json"))
    fbank = sample.decode_fbank(shard.read(entry, "fbank.npy"), info.fbank_frames)
    numbers = range(len(info.frame_times))
    frames = {name for name in entry.members if name.endswith(".jpg")}
    if frames != {sample.frame_member(i) for i in numbers}:
        raise SampleError("missing_member", f"{len(frames)} frames for {len(numbers)} times")
    for name in sorted(frames):
        sample.decode_frame(shard.read(entry, name), info.frame_size)
    masks = [name for name in entry.members if name.endswith(".png")]
    if set(masks) != {sample.mask_member(i) for i in info.masked_frames}:
        raise SampleError(
            "missing_member", f"{len(masks)} masks, the json says {len(info.masked_frames)}"
        )
    for name in masks:
        values = np.unique(sample.decode_mask(shard.read(entry, name), info.frame_size))
        unknown = {str(v) for v in values if v} - set(info.mask_values or {})
        if unknown:
            raise SampleError("bad_mask", f"{name} has values {sorted(unknown)} without a meaning")
    if "flac" in entry.members:
        samples = len(sample.decode_waveform(shard.read(entry, "flac")))
        if fbank_frames(samples) != info.fbank_frames:
            raise SampleError(
                "bad_waveform", f"{samples / SAMPLE_RATE:.3f} s, the fbank is of another length"
            )
    return info, fbank, len(masks)


def statistics(manifest: Manifest, survey: Survey) -> dict[str, Any]:
    """Content of ``stats.json``."""
    return {
        "schema": sample.SCHEMA,
        "samples": survey.samples,
        "hours": round(survey.seconds / 3600, 6),
        "frames": survey.frames,
        "masks": survey.masks,
        "fbank_mean": survey.fbank_mean,
        "fbank_std": survey.fbank_std,
        "fbank_frames": survey.fbank_count // MEL_BINS,
        "silent_clips": survey.silent,
        "silent_share": survey.quiet_frames / max(1, survey.fbank_rows),
        "missing_frames": survey.missing_frames,
        "labels": dict(sorted(survey.labels.items())),
        "speakers": dict(sorted(survey.speakers.items())),
        "frame_rates": dict(sorted(survey.frame_rates.items())),
        "frame_sizes": dict(sorted(survey.sizes.items())),
        "decoders": dict(sorted(survey.decoders.items())),
        "shards": len(manifest.shards),
    }
