"""Result folder of a separated recording: its files and ``result.json``."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cavmae.common.errors import CavmaeError, NonFiniteError
from cavmae.common.files import write_atomically
from cavmae.common.json_files import JSONError, json_bytes, read_json
from cavmae.datasets.media import Probe
from cavmae.datasets.stream.features import SAMPLE_RATE
from cavmae.datasets.stream.rates import VIDEO_RATE
from cavmae.finetune.inference.audio import CEILING, loudness, peak_of, write_wav
from cavmae.finetune.inference.predictor import Cue
from cavmae.finetune.inference.progress import ProgressCallback
from cavmae.finetune.inference.records import decibels, target_record
from cavmae.finetune.inference.result_videos import second_pass
from cavmae.finetune.inference.separation import SeparatedRecording
from cavmae.finetune.inference.settings import SeparateSettings

SCHEMA = 4
RESULT = "result.json"


@dataclasses.dataclass(frozen=True)
class PersonFiles:
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
class SeparatedFiles:
    """Files and record of a separated recording.

    Attributes:
        folder: folder of the files.
        people: in the order of their numbers.
        residual: WAV file of the mixture minus all voices.
        overlay: overlay video; None: not requested.
        record: content of ``result.json``.
    """

    folder: Path
    people: tuple[PersonFiles, ...]
    residual: Path
    overlay: Path | None
    record: Mapping[str, Any]

    @classmethod
    def load(cls, folder: Path) -> "SeparatedFiles":
        """Load a finished result folder.

        Raises:
            CavmaeError: the folder holds no finished result.
        """
        try:
            record = read_json(folder / RESULT, remedy=f"remove {folder} to have it made again")
            if isinstance(record, dict) and "schema" not in record:
                raise CavmaeError(f"{folder / RESULT} is of another program: name another --out.")
            people = tuple(
                PersonFiles(
                    person["number"], folder / person["voice"],
                    folder / person["mask"] if person["mask"] else None, person,
                )
                for person in record["people"]
            )  # fmt: skip
            overlay = folder / record["overlay"] if record["overlay"] else None
            return cls(folder, people, folder / record["residual"], overlay, record)
        except KeyError as error:
            raise CavmaeError(
                f"{folder / RESULT} has no {error.args[0]}: remove {folder} to have it made again."
            ) from error
        except (OSError, JSONError, ValueError, TypeError) as error:
            raise CavmaeError(f"{folder} holds no finished result ({error}).") from error


def write_files(
    separated: SeparatedRecording,
    info: Probe,
    folder: Path,
    settings: SeparateSettings,
    provenance: Mapping[str, Any],
    cue: Cue | None,
    progress: ProgressCallback,
) -> None:
    """Write the files of a separated recording.

    Args:
        separated: the results.
        info: streams of the recording.
        folder: empty folder for the files.
        settings: options of separation.
        provenance: inputs that the result depends on, for ``result.json``.
        cue: cue for the target; None: there is no target.
        progress: called as videos are written.

    Raises:
        NonFiniteError: a record has NaN or Inf.
        OSError: a file cannot be written.
    """
    recording, voices = separated.recording, separated.voices
    rate = info.audio_rate if settings.rate == "input" else SAMPLE_RATE
    waves = (separated.mixture, separated.residual, *voices.values())
    peak = max(peak_of(wave, rate) for wave in waves)
    gain = min(1.0, CEILING / peak) if peak else 1.0
    for number, voice in voices.items():
        write_wav(folder / f"person-{number}.wav", voice, gain, rate)
    write_wav(folder / "residual.wav", separated.residual, gain, rate)
    record: dict[str, Any] = {
        "schema": SCHEMA,
        **provenance,
        "seconds": recording.samples / SAMPLE_RATE,
        "target": target_record(cue),
        "sample_rate": rate,
        "gain": gain,
        "frame_rate": VIDEO_RATE,
        "av_offset": recording.sound_lead / SAMPLE_RATE,
        "missing_frames": recording.missing_frames,
        "missing_audio": round(recording.missing_audio, 4),
        "video_stream": info.video_stream,
        "audio_stream": info.audio_stream,
        "mixdown": ", ".join(recording.mixdown),
        "tone_mapping": info.transfer,
        "remarks": [*info.remarks, *separated.remarks],
        "people": [
            {
                "number": number,
                "voice": f"person-{number}.wav",
                "mask": f"person-{number}.mp4" if settings.masks else None,
                **separated.records[number],
            }
            for number in separated.people
        ],
        "residual": "residual.wav",
        "overlay": "overlay.mp4" if settings.overlay else None,
        "residual_db": decibels(loudness(separated.residual)),
    }
    if settings.overlay or (settings.masks and separated.people):
        masks = {n: folder / f"person-{n}.mp4" for n in separated.people} if settings.masks else {}
        overlay = folder / "overlay.mp4" if settings.overlay else None
        second_pass(
            info, recording, separated.people, separated.spans, separated.mixture, overlay, masks,
            settings.height, progress,
        )  # fmt: skip
    try:
        data = json_bytes(record, indent=1)
    except CavmaeError as error:  # NaN or Inf of the model
        raise NonFiniteError(str(error)) from error
    with write_atomically(folder / RESULT) as file:
        file.write(data)
