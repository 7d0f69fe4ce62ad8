"""Speaker discovery: draws espeak-ng voices, or measures recordings, once for a corpus.

The result is kept in ``speakers.json`` and never computed anew, so that a corpus can be completed
or lengthened and stays the same.
"""

import contextlib
import dataclasses
import logging
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cavmae.common import worker_pool
from cavmae.common.errors import CavmaeError
from cavmae.common.files import write_atomically
from cavmae.common.json_files import json_bytes, read_json
from cavmae.common.progress import Progress
from cavmae.common.threads import use_one_thread
from cavmae.datasets.synthetic import recordings, voices
from cavmae.datasets.synthetic.population import Population, Speaker, rng_for
from cavmae.datasets.synthetic.recordings import SpeechRecording
from cavmae.datasets.synthetic.settings import RenderSettings
from cavmae.datasets.synthetic.voices import RecordedVoice, Voice

log = logging.getLogger("cavmae")
NAME, SKIPPED = "speakers.json", "skipped.jsonl"
TIMEOUT, MEMORY = 120.0, 4e9  # s, bytes: for one voice


@dataclasses.dataclass(frozen=True)
class _Audition:
    """Task of a worker: an espeak-ng voice, or the files of a reader, to measure."""

    folder: str
    files: tuple[str, ...]
    voice: Voice | None


@dataclasses.dataclass(frozen=True)
class _AuditionResult:
    voice: Voice | None
    pitch_hz: float
    skipped: tuple[tuple[str, str, str], ...]  # file, reason, detail


def audition_voice(audition: _Audition, beat: Callable[[Any], None]) -> _AuditionResult:
    """Measure a speaker's voice and pitch. Runs in a worker process."""
    use_one_thread()
    voice = audition.voice
    skipped = []
    if voice is None:
        good = []
        for name in audition.files:
            result = recordings.inspect_recording(Path(audition.folder), name)
            beat(None)
            if isinstance(result, SpeechRecording):
                good.append(result)
            else:
                skipped.append((name, *result))
        if not good:
            return _AuditionResult(None, 0.0, tuple(skipped))
        voice = RecordedVoice(audition.folder, tuple(good))
    return _AuditionResult(voice, voices.median_pitch(voice), tuple(skipped))


def load_or_discover(out: Path, settings: RenderSettings, workers: int) -> Population:
    """Load the speakers of an earlier run of this corpus, else discover them.

    Raises:
        UsageError: too few speakers.
        CavmaeError: no usable recordings, or those of an earlier run are gone or altered.
    """
    path = out / NAME
    if path.exists():
        try:
            record = read_json(path, remedy="choose another --out folder")
            speakers = [Speaker.from_record(s, settings.speech) for s in record["speakers"]]
        except (ValueError, KeyError, TypeError) as error:
            raise CavmaeError(
                f"{path} is damaged ({error!r}); choose another --out folder."
            ) from error
        _check_recordings(speakers, path)
        return Population(speakers, settings.seed)
    auditions = _recording_auditions(settings) if settings.speech else _espeak_auditions(settings)
    speaker_voices, skipped = _run_auditions(auditions, workers)
    if skipped:
        with write_atomically(out / SKIPPED) as file:
            for source, reason, detail in skipped:
                line = {"source": source, "reason": reason, "detail": detail}
                file.write(json_bytes(line))
        log.info("%d recordings cannot be used; %s gives the reasons.", len(skipped), out / SKIPPED)
    if not speaker_voices:
        raise CavmaeError(
            f"None of the recordings in {settings.speech} can be used; {out / SKIPPED} gives "
            "the reasons."
        )
    population = Population.from_voices(settings, speaker_voices)
    with write_atomically(path) as file:
        file.write(json_bytes({"speakers": [s.record() for s in population.speakers]}, indent=1))
    return population


def _espeak_auditions(settings: RenderSettings) -> dict[str, _Audition]:
    auditions = {}
    for number in range(settings.speakers):
        voice = voices.draw_espeak_voice(rng_for(settings.seed, "voice", number))
        auditions[f"s{settings.seed}n{number:04d}"] = _Audition("", (), voice)
    return auditions


def _recording_auditions(settings: RenderSettings) -> dict[str, _Audition]:
    assert settings.speech is not None
    files = defaultdict(list)
    for reader, name in recordings.list_recordings(Path(settings.speech)):
        files[reader].append(name)
    return {
        reader: _Audition(settings.speech, tuple(names), None) for reader, names in files.items()
    }


def _run_auditions(
    auditions: dict[str, _Audition], workers: int
) -> tuple[dict[str, tuple[Voice, float]], list[tuple[str, str, str]]]:
    names = list(auditions)
    speaker_voices: dict[str, tuple[Voice, float]] = {}
    skipped: list[tuple[str, str, str]] = []
    events = worker_pool.run(
        ((n, auditions[name]) for n, name in enumerate(names)),
        audition_voice,
        workers,
        TIMEOUT,
        MEMORY,
    )
    with Progress(len(names), "voice") as progress, contextlib.closing(events):
        for event in events:
            if isinstance(event, worker_pool.TaskProgress | worker_pool.Restarted):
                continue
            name = names[event.task]
            if isinstance(event, worker_pool.Lost):
                skipped += [
                    (f, event.reason, event.detail) for f in auditions[name].files or [name]
                ]
            else:
                result: _AuditionResult = event.result
                skipped += result.skipped
                if result.voice is not None:
                    speaker_voices[name] = result.voice, result.pitch_hz
            progress.done()
    return speaker_voices, sorted(skipped)


def _check_recordings(speakers: list[Speaker], path: Path) -> None:
    for speaker in speakers:
        if not isinstance(speaker.voice, RecordedVoice):
            continue
        for recording in speaker.voice.recordings:
            file = Path(speaker.voice.folder) / recording.path
            if not file.is_file() or file.stat().st_size != recording.bytes:
                raise CavmaeError(
                    f"{file} is missing or not the file that {path} names: bring it back, or "
                    "choose another --out folder."
                )
