"""Any recording in, everybody's voice and pixels out: the two lines of Python.

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
from cavmae.datasets.media.playback import RATE, Playback
from cavmae.datasets.sharding.sources import local_copy
from cavmae.datasets.stream.features import SAMPLE_RATE
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
# Errors of the disk that results are written to, whatever the recording.
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})


class FullDiskError(CavmaeError):
    """Results cannot be written any more, of this recording or of another."""


@dataclasses.dataclass(frozen=True)
class PersonResult:
    """Somebody who was found.

    Attributes:
        number: from 1.
        voice: WAV file as long as the recording.
        mask: mask video; None: none was asked for.
        record: all that ``result.json`` says of them.
    """

    number: int
    voice: Path
    mask: Path | None
    record: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Result:
    """What a recording was taken apart into.

    Attributes:
        folder: of the files.
        people: in the order of their numbers.
        residual: WAV file of what belongs to none of them.
        overlay: video; None: none was asked for.
        record: content of ``result.json``.
    """

    folder: Path
    people: tuple[PersonResult, ...]
    residual: Path
    overlay: Path | None
    record: Mapping[str, Any]

    @classmethod
    def load(cls, folder: Path) -> "Result":
        """Of a finished folder.

        Raises:
            CavmaeError: it is none.
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
    """A speaker model, ready for recordings of any length.

    Args:
        seer: the model.
        name: what it was loaded from, for the record.
        precision: that it computes in.
    """

    def __init__(self, predictor: WindowPredictor, name: str, precision: str):
        self._predictor = predictor
        self._name = name
        self._precision = precision

    @classmethod
    def from_pretrained(
        cls, name: str, device: str = "auto", precision: str = "fp32"
    ) -> "Separator":
        """Loads a model.

        Args:
            name: checkpoint of `cavmae finetune speakers`, or a name on the hub.
            device: ``auto``: a GPU if there is one.
            precision: ``fp32``, ``bf16`` or ``fp16``.

        Raises:
            CavmaeError: there is no such model, or no such device.
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
        """Takes a recording apart.

        Args:
            video: file or URL.
            out: folder of the results, which appears whole or not at all.
            settings: how; None: as usual.
            target: that person only.

        Raises:
            CavmaeError: the recording has no sound or no picture, or too much of it does not
                decode; nobody is where a target is said to be; the folder is there already; the
                model's output is not finite.
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
            scratch_files, finished = _emptied(scratch / "work"), _emptied(scratch / "made")
            try:
                with local_copy(video, scratch_files) as path:
                    info = probe(path, settings.video_stream, settings.audio_stream)
                    self._separate_into(
                        video, info, scratch_files, finished, settings, target or Target()
                    )
                finished.rename(out)
            finally:
                shutil.rmtree(scratch_files)
                shutil.rmtree(
                    finished, ignore_errors=True
                )  # it has gone where it belongs, or failed
        return Result.load(out)

    def provenance(self, video: str, settings: SeparateSettings, target: Target) -> dict[str, Any]:
        """What a result depends on, as ``result.json`` has it."""
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
        """SHA-256 of the weights and of what fbanks are normalised by."""
        digest = hashlib.sha256(repr(self._predictor.task.statistics).encode())
        for name, weight in sorted(self._predictor.task.model.state_dict().items()):
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
        rate = info.sound_rate if settings.rate == "input" else SAMPLE_RATE
        # Numbered anew: some of the first pass are left out.
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
            "frame_rate": RATE,
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
        loud = loudness(mixture)
        spans: dict[int, list[Span]] = {}
        for number, person_sightings in people.items():
            write_wav(out / f"person-{number}.wav", voices[number], gain, rate)
            level = loudness(voices[number])
            spans[number] = speech_spans(level, loud, activity_prob(recording, person_sightings))
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
        except CavmaeError as error:  # the model is at fault
            raise NonFiniteError(str(error)) from error
        with write_atomically(out / RESULT) as file:
            file.write(data)

    @contextlib.contextmanager
    def _name_in_errors(self, video: str) -> Iterator[None]:
        """Whatever is wrong with a recording, or with the machine, is told of the recording.

        Raises:
            FullDiskError: results cannot be written.
            CavmaeError: something else.
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
    """A folder, without what a killed run may have left there."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir()
    return folder


# What is said of a recording that cannot be taken apart.
_MEDIA_MESSAGES = {
    "no_audio": "it has no sound, so there are no voices to be found",
    "no_video": "it has no picture, so nobody can be seen",
    "missing": "there is no such file",
    "empty": "the file is empty",
    "unreadable": "it cannot be read",
    "decode_error": "it does not decode",
}


def _select_people(
    recording: FirstPass, settings: SeparateSettings, cue: Cue | None
) -> dict[int, list[Sighting]]:
    """Who stays, those seen long enough or the target alone, by the first pass's numbers."""
    # A single window gives whom a forward pass gives.
    min_frames = (
        min(settings.min_seconds * RATE, recording.frames / 2) if len(recording.starts) > 1 else 0
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
            f"Nobody was found who is meant by the {cue.kind} at {cue.time:g} s: name "
            "another moment, or another cue."
        )
    return {best: recording.people[best]}


def _match_reference_voice(people: Mapping[int, list[Sighting]]) -> dict[int, list[Sighting]]:
    """Whoever sounds most like a reference voice over all windows, the louder ones for more."""
    # However rarely: somebody is heard where they are loudest.
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
            "Nobody was found who says anything, so the reference voice fits nobody: give "
            "another cue."
        )
    best = min(distances, key=lambda n: distances[n])
    return {best: people[best]}
