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
    rest_of,
    speech_spans,
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
    decibels,
    likely_heard,
    person_record,
    target_record,
    visible,
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
                    told["number"], folder / told["voice"],
                    folder / told["mask"] if told["mask"] else None, told,
                )
                for told in record["people"]
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

    def __init__(self, seer: WindowPredictor, name: str, precision: str):
        self._seer = seer
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
        with self._told_of(video), locked(scratch, f"Another process is making {out}."):
            if (scratch / "work").exists():
                log.info("%s: an interrupted run left it half done; it begins anew.", video)
            work, made = _emptied(scratch / "work"), _emptied(scratch / "made")
            try:
                with local_copy(video, work) as path:
                    info = probe(path, settings.video_stream, settings.audio_stream)
                    self._into(video, info, work, made, settings, target or Target())
                made.rename(out)
            finally:
                shutil.rmtree(work)
                shutil.rmtree(made, ignore_errors=True)  # it has gone where it belongs, or failed
        return Result.load(out)

    def made_of(self, video: str, settings: SeparateSettings, target: Target) -> dict[str, Any]:
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
        digest = hashlib.sha256(repr(self._seer.task.statistics).encode())
        for name, weight in sorted(self._seer.task.model.state_dict().items()):
            digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
            digest.update(weight.cpu().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    def _into(
        self, name: str, info: Probe, work: Path, made: Path, settings: SeparateSettings,
        who: Target,
    ) -> None:  # fmt: skip
        for remark in info.remarks:
            log.warning("%s: %s.", name, remark)
        geometry = working_geometry(info, self._seer.shape.encoder.image_size, settings.second_look)
        with contextlib.ExitStack() as closing:
            playing = closing.enter_context(Playback(info, geometry))
            target = who.cue(info, playing.seconds, self._seer.shape.samples)

            def begun(windows: int) -> Callable[[], None]:
                log.info("%s: %.1f s, %d windows.", name, playing.seconds, windows)
                return closing.enter_context(Progress(windows, "window")).done

            found = first_pass(self._seer, info, playing, work, settings, target, begun)
        for remark in found.remarks:
            log.warning("%s: %s.", name, remark)
        chosen = _chosen(found, settings, target)
        rate = info.audio_rate if settings.rate == "input" else SAMPLE_RATE
        # Numbered anew: some of the first pass are left out.
        voices = {number: found.wave(track) for number, track in enumerate(chosen, 1)}
        people = dict(enumerate(chosen.values(), 1))
        mixture = found.wave(MIXTURE)
        rest = rest_of(mixture, list(voices.values()), work / "rest.f32")
        peak = max(peak_of(wave) for wave in (mixture, rest, *voices.values()))
        gain = min(1.0, CEILING / peak) if peak else 1.0
        record: dict[str, Any] = {
            "schema": SCHEMA,
            **self.made_of(name, settings, who),
            "seconds": found.samples / SAMPLE_RATE,
            "target": target_record(target),
            "sample_rate": rate,
            "gain": gain,
            "frame_rate": RATE,
            "missing_frames": found.missing_frames,
            "missing_sound": round(found.missing_sound, 4),
            "video_stream": info.video_stream,
            "audio_stream": info.audio_stream,
            "mixdown": ", ".join(found.mixdown),
            "tone_mapping": info.transfer,
            "remarks": [*info.remarks, *found.remarks],
            "people": [],
            "residual": "residual.wav",
            "overlay": "overlay.mp4" if settings.overlay else None,
        }
        loud = loudness(mixture)
        spans: dict[int, list[Span]] = {}
        for number, sightings in people.items():
            write_wav(made / f"person-{number}.wav", voices[number], gain, rate)
            level = loudness(voices[number])
            spans[number] = speech_spans(level, loud, likely_heard(found, sightings))
            record["people"].append(
                person_record(found, number, sightings, level, spans[number], settings)
            )
        write_wav(made / "residual.wav", rest, gain, rate)
        record["residual_db"] = decibels(loudness(rest))
        if settings.overlay or (settings.masks and people):
            files = {n: made / f"person-{n}.mp4" for n in people} if settings.masks else {}
            overlay = made / "overlay.mp4" if settings.overlay else None
            second_pass(info, found, people, spans, mixture, overlay, files, settings.height)
        try:
            data = json_bytes(record, indent=1)
        except CavmaeError as error:  # the model is at fault
            raise NonFiniteError(str(error)) from error
        with write_atomically(made / RESULT) as file:
            file.write(data)

    @contextlib.contextmanager
    def _told_of(self, video: str) -> Iterator[None]:
        """Whatever is wrong with a recording, or with the machine, is told of the recording.

        Raises:
            FullDiskError: results cannot be written.
            CavmaeError: something else.
        """
        try:
            yield
        except MediaError as error:
            said = f"{_SAID.get(error.reason, error.reason)} ({error.detail})"
            raise CavmaeError(f"{video}: {said}.") from error
        except NonFiniteError as error:
            other = "" if self._precision == "fp32" else ", or try --precision fp32"
            raise CavmaeError(
                f"{video}: model {self._name} gives NaN or Inf for it, so its weights or its "
                f"statistics are damaged: copy the model again{other}."
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
_SAID = {
    "no_audio": "it has no sound, so there are no voices to be found",
    "no_video": "it has no picture, so nobody can be seen",
    "missing": "there is no such file",
    "empty": "the file is empty",
    "unreadable": "it cannot be read",
    "decode_error": "it does not decode",
}


def _chosen(
    found: FirstPass, settings: SeparateSettings, target: Cue | None
) -> dict[int, list[Sighting]]:
    """Who stays, those seen long enough or the target alone, by the first pass's numbers."""
    # A single window gives whom a forward pass gives.
    least = min(settings.min_seconds * RATE, found.frames / 2) if len(found.starts) > 1 else 0
    lasting = {n: s for n, s in found.people.items() if visible(found, s).sum() >= least}
    if target is None:
        return lasting
    if target.kind == "voice":
        return _most_alike(lasting)
    meant = {n: sum(s.there for s in some if s.cued) for n, some in found.people.items()}
    best = max(meant, key=lambda n: meant[n], default=None)
    if best is None or not meant[best]:
        raise CavmaeError(
            f"Nobody was found who is meant by the {target.kind} at {target.time:g} s: name "
            "another moment, or another cue."
        )
    return {best: found.people[best]}


def _most_alike(people: Mapping[int, list[Sighting]]) -> dict[int, list[Sighting]]:
    """Whoever sounds most like a reference voice over all windows, the louder ones for more."""
    # However rarely: somebody is heard where they are loudest.
    power = {n: max(s.power for s in some) for n, some in people.items()}
    loudest = max(power.values(), default=0.0)
    apart = {
        n: sum(s.power * (s.unlike or 0.0) for s in people[n]) / sum(s.power for s in people[n])
        for n in power
        if power[n] > 0 and power[n] >= AUDIBLE * loudest
    }
    if not apart:
        raise CavmaeError(
            "Nobody was found who says anything, so the reference voice fits nobody: give "
            "another cue."
        )
    best = min(apart, key=lambda n: apart[n])
    return {best: people[best]}
