"""Separation of a recording into one voice and one mask video for each person.

>>> separator = Separator.from_pretrained("runs/speakers/checkpoints/000010000")
>>> result = separator.separate("meeting.mp4", "out/meeting")
"""

import contextlib
import dataclasses
import errno
import functools
import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import av
import torch

from cavmae.common.errors import CavmaeError, NonFiniteError, UsageError
from cavmae.common.files import write_atomically
from cavmae.common.json_files import JSONError, json_bytes, read_json
from cavmae.common.locks import locked
from cavmae.common.progress import Progress
from cavmae.datasets.media import MediaError, Probe, probe
from cavmae.datasets.media.playback import Playback
from cavmae.datasets.sharding.sources import local_copy
from cavmae.datasets.stream.features import SAMPLE_RATE
from cavmae.datasets.stream.rates import VIDEO_RATE
from cavmae.finetune.inference.audio import (
    CEILING,
    Span,
    loudness,
    peak_of,
    speech_spans,
    write_residual,
    write_wav,
)
from cavmae.finetune.inference.first_pass import (
    MIXTURE,
    FirstPass,
    Sighting,
    first_pass,
    working_geometry,
)
from cavmae.finetune.inference.naming import scratch_of, source_facts
from cavmae.finetune.inference.overlay import second_pass
from cavmae.finetune.inference.predictor import Cue, WindowPredictor
from cavmae.finetune.inference.result import (
    activity_prob,
    decibels,
    person_record,
    target_record,
    visible_frames,
)
from cavmae.finetune.inference.settings import SeparateSettings
from cavmae.finetune.inference.target import Target
from cavmae.finetune.speaker.factory import load_speaker
from cavmae.finetune.speaker.voice_matching import AUDIBLE

log = logging.getLogger("cavmae")
SCHEMA = 1
RESULT = "result.json"
# Errors of the output disk; they concern all recordings of a run.
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})


class FullDiskError(CavmaeError):
    """The output disk is full or read-only, so no further result can be written."""


@dataclasses.dataclass(frozen=True)
class PersonResult:
    """Files and record of one person.

    Attributes:
        number: from 1.
        voice: WAV file as long as the recording.
        mask: mask video; None: not requested.
        record: entry of the person in ``result.json``.
    """

    number: int
    voice: Path
    mask: Path | None
    record: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Result:
    """Files and record of a separated recording.

    Attributes:
        folder: folder of the files.
        people: in the order of their numbers.
        residual: WAV file of the mixture minus all voices.
        overlay: overlay video; None: not requested.
        record: content of ``result.json``.
    """

    folder: Path
    people: tuple[PersonResult, ...]
    residual: Path
    overlay: Path | None
    record: Mapping[str, Any]

    @classmethod
    def load(cls, folder: Path) -> "Result":
        """Load a finished result folder.

        Raises:
            CavmaeError: the folder holds no finished result.
        """
        try:
            record = read_json(folder / RESULT, remedy=f"remove {folder} to have it made again")
            people = tuple(
                PersonResult(
                    person["number"], folder / person["voice"],
                    folder / person["mask"] if person["mask"] else None, person,
                )
                for person in record["people"]
            )  # fmt: skip
            overlay = folder / record["overlay"] if record["overlay"] else None
            return cls(folder, people, folder / record["residual"], overlay, record)
        except (OSError, JSONError, ValueError, KeyError, TypeError) as error:
            raise CavmaeError(f"{folder} holds no finished result ({error}).") from error


class Separator:
    """Speaker model for recordings of any length.

    Args:
        predictor: the model.
        name: source of the model, for the record.
        precision: precision of the model, for the record.
    """

    def __init__(self, predictor: WindowPredictor, name: str, precision: str):
        self._predictor = predictor
        self._name = name
        self._precision = precision

    @classmethod
    def from_pretrained(
        cls, name: str, device: str = "auto", precision: str = "fp32"
    ) -> "Separator":
        """Load a speaker model.

        Args:
            name: checkpoint of `cavmae finetune speakers`, or a name on the hub.
            device: ``auto``: a GPU if there is one.
            precision: ``fp32``, ``bf16`` or ``fp16``.

        Raises:
            CavmaeError: the model or the device does not exist.
        """
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        model, statistics = load_speaker(name)
        try:
            model = model.to(device).eval()
        except (RuntimeError, AssertionError) as error:
            raise UsageError(f"--device {device} cannot be used: {error}") from error
        return cls(WindowPredictor(model, statistics, precision), name, precision)

    def separate(
        self,
        video: str,
        out: str | Path,
        settings: SeparateSettings | None = None,
        target: Target | None = None,
    ) -> Result:
        """Separate a recording.

        Args:
            video: file or URL.
            out: result folder; it appears complete or not at all.
            settings: options; None: the defaults.
            target: separate this person only; None: all people.

        Raises:
            CavmaeError: the recording has no audio or no video, or too much of it does not
                decode; no person matches the target; the folder exists; the output of the model
                is not finite.
            FullDiskError: results cannot be written.
        """
        settings = settings or SeparateSettings()
        out = Path(out)
        if out.exists():
            raise UsageError(f"{out} is there already: name another folder, or remove it.")
        out.parent.mkdir(parents=True, exist_ok=True)
        scratch = scratch_of(out)
        with self._name_in_errors(video), locked(scratch, f"Another process is making {out}."):
            if (scratch / "work").exists():
                log.info("%s: an interrupted run left it half done; it begins anew.", video)
            work, finished = _emptied(scratch / "work"), _emptied(scratch / "made")
            try:
                with local_copy(video, work) as path:
                    info = probe(path, settings.video_stream, settings.audio_stream)
                    self._separate_into(video, info, work, finished, settings, target or Target())
                finished.rename(out)
            finally:
                shutil.rmtree(work)
                # It is gone after a success.
                shutil.rmtree(finished, ignore_errors=True)
        return Result.load(out)

    def provenance(self, video: str, settings: SeparateSettings, target: Target) -> dict[str, Any]:
        """Inputs that a result depends on, as ``result.json`` records them."""
        return {
            **source_facts(video),
            "model": self._name,
            "weights": self._weights,
            "precision": self._precision,
            "settings": dataclasses.asdict(settings),
            "asked": json.loads(json.dumps(dataclasses.asdict(target))),
        }

    @functools.cached_property
    def _weights(self) -> str:
        """SHA-256 of the weights and of the fbank statistics."""
        digest = hashlib.sha256(repr(self._predictor.speaker.statistics).encode())
        for name, weight in sorted(self._predictor.speaker.model.state_dict().items()):
            digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
            digest.update(weight.cpu().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    def _separate_into(
        self, name: str, info: Probe, scratch: Path, out: Path, settings: SeparateSettings,
        target: Target,
    ) -> None:  # fmt: skip
        for remark in info.remarks:
            log.warning("%s: %s.", name, remark)
        geometry = working_geometry(
            info, self._predictor.shape.encoder.image_size, settings.second_look
        )
        with contextlib.ExitStack() as closing:
            playback = closing.enter_context(Playback(info, geometry))
            cue = target.cue(info, playback.seconds, self._predictor.shape.samples)

            def on_start(windows: int) -> Callable[[], None]:
                log.info("%s: %.1f s, %d windows.", name, playback.seconds, windows)
                return closing.enter_context(Progress(windows, "window")).done

            recording = first_pass(
                self._predictor, info, playback, scratch, settings, cue, on_start
            )
        for remark in recording.remarks:
            log.warning("%s: %s.", name, remark)
        sightings = _select_people(recording, settings, cue)
        rate = info.audio_rate if settings.rate == "input" else SAMPLE_RATE
        # Numbered again, since some people of the first pass are dropped.
        voices = {number: recording.wave(track) for number, track in enumerate(sightings, 1)}
        people = dict(enumerate(sightings.values(), 1))
        mixture = recording.wave(MIXTURE)
        residual = write_residual(mixture, list(voices.values()), scratch / "rest.f32")
        peak = max(peak_of(wave) for wave in (mixture, residual, *voices.values()))
        gain = min(1.0, CEILING / peak) if peak else 1.0
        record: dict[str, Any] = {
            "schema": SCHEMA,
            **self.provenance(name, settings, target),
            "seconds": recording.samples / SAMPLE_RATE,
            "target": target_record(cue),
            "sample_rate": rate,
            "gain": gain,
            "frame_rate": VIDEO_RATE,
            "missing_frames": recording.missing_frames,
            "missing_sound": round(recording.missing_audio, 4),
            "video_stream": info.video_stream,
            "audio_stream": info.audio_stream,
            "mixdown": ", ".join(recording.mixdown),
            "tone_mapping": info.transfer,
            "remarks": [*info.remarks, *recording.remarks],
            "people": [],
            "residual": "residual.wav",
            "overlay": "overlay.mp4" if settings.overlay else None,
        }
        mixture_level = loudness(mixture)
        spans: dict[int, list[Span]] = {}
        for number, person_sightings in people.items():
            write_wav(out / f"person-{number}.wav", voices[number], gain, rate)
            level = loudness(voices[number])
            spans[number] = speech_spans(
                level, mixture_level, activity_prob(recording, person_sightings)
            )
            record["people"].append(
                person_record(recording, number, person_sightings, level, spans[number], settings)
            )
        write_wav(out / "residual.wav", residual, gain, rate)
        record["residual_db"] = decibels(loudness(residual))
        if settings.overlay or (settings.masks and people):
            files = {n: out / f"person-{n}.mp4" for n in people} if settings.masks else {}
            overlay = out / "overlay.mp4" if settings.overlay else None
            second_pass(info, recording, people, spans, mixture, overlay, files, settings.height)
        try:
            data = json_bytes(record, indent=1)
        except CavmaeError as error:  # NaN or Inf of the model
            raise NonFiniteError(str(error)) from error
        with write_atomically(out / RESULT) as file:
            file.write(data)

    @contextlib.contextmanager
    def _name_in_errors(self, video: str) -> Iterator[None]:
        """Re-raise any failure as a CavmaeError that names the recording.

        Raises:
            FullDiskError: results cannot be written.
            CavmaeError: any other failure.
        """
        try:
            yield
        except MediaError as error:
            message = f"{_MEDIA_MESSAGES.get(error.reason, error.reason)} ({error.detail})"
            raise CavmaeError(f"{video}: {message}.") from error
        except NonFiniteError as error:
            remedy = "" if self._precision == "fp32" else ", or try --precision fp32"
            raise CavmaeError(
                f"{video}: model {self._name} gives NaN or Inf for it, so its weights or its "
                f"statistics are damaged: copy the model again{remedy}."
            ) from error
        except torch.OutOfMemoryError as error:
            raise CavmaeError(
                f"{video}: the GPU's memory does not suffice: --precision bf16, or --device cpu."
            ) from error
        except MemoryError as error:
            raise CavmaeError(f"{video}: memory does not suffice.") from error
        except (OSError, av.FFmpegError) as error:
            if error.errno in FULL:
                raise FullDiskError(
                    f"{video}: its results cannot be written ({error.strerror}): free some space "
                    "and give the same command again; what is finished is kept."
                ) from error
            raise CavmaeError(f"{video}: {error}") from error


def _emptied(folder: Path) -> Path:
    """Create an empty folder, without the files of a killed run."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir()
    return folder


# Messages for recordings that cannot be separated.
_MEDIA_MESSAGES = {
    "no_audio": "it has no audio, so it has no voices to separate",
    "no_video": "it has no video, so it shows no people",
    "missing": "there is no such file",
    "empty": "the file is empty",
    "unreadable": "it cannot be read",
    "decode_error": "it does not decode",
}


def _select_people(
    recording: FirstPass, settings: SeparateSettings, cue: Cue | None
) -> dict[int, list[Sighting]]:
    """The target alone, or the people who are visible long enough, by number of the first pass."""
    # A single window gives the people of its forward pass.
    min_frames = (
        min(settings.min_seconds * VIDEO_RATE, recording.frames / 2)
        if len(recording.starts) > 1
        else 0
    )
    lasting = {
        n: s
        for n, s in recording.people.items()
        if visible_frames(recording, s).sum() >= min_frames
    }
    if cue is None:
        return lasting
    if cue.kind == "voice":
        return _match_reference_voice(lasting)
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
    return {best: recording.people[best]}


def _match_reference_voice(people: Mapping[int, list[Sighting]]) -> dict[int, list[Sighting]]:
    """The person whose voice is nearest to a reference voice, weighted by power over windows."""
    # The largest power over windows: a rare voice is audible in few of them.
    power = {n: max(s.power for s in sightings) for n, sightings in people.items()}
    loudest = max(power.values(), default=0.0)
    distances = {
        n: sum(s.power * (s.voice_distance or 0.0) for s in people[n])
        / sum(s.power for s in people[n])
        for n in power
        if power[n] > 0 and power[n] >= AUDIBLE * loudest
    }
    if not distances:
        raise CavmaeError(
            "No person has an audible voice to compare with the reference voice: give another cue."
        )
    best = min(distances, key=lambda n: distances[n])
    return {best: people[best]}
