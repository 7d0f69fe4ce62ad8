"""Audio tracks of a separated recording: mixture, voices, residual, and true voices if known.

Clips of `cavmae render-talkers` come with their ground truth. The path of the source leads to it,
and it counts only if the audio of the source matches the recording.
"""

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import torch
from scipy.optimize import linear_sum_assignment
from torchmetrics.functional.audio import scale_invariant_signal_distortion_ratio

from cavmae.common.errors import CavmaeError
from cavmae.common.files import is_url
from cavmae.datasets.media import MediaError, probe
from cavmae.datasets.media.audio_reader import AudioReader
from cavmae.datasets.stream.features import SAMPLE_RATE, resample
from cavmae.datasets.synthetic.settings import TRUTH
from cavmae.tools.reporting.fields import Fields, FileRefused, open_inside
from cavmae.tools.reporting.sources import Separation

PAGE_SECONDS = 30.0  # of a track, in a page
MEASURED_SECONDS = 120.0  # of a track, compared with the ground truth
AUDIO_BYTES = 4 << 30
RATES = (4_000, 192_000)  # Hz
SHOWN_PEOPLE = 32  # of a recording, with tracks and videos of their own
MAX_PEOPLE = 10_000  # of a recording
TOLERANCE = 0.1  # norm of the difference between source and recording, as a fraction of the source


class AudioTrack(NamedTuple):
    """Audio track of a page.

    Attributes:
        name: title of the track.
        wave: float32 [samples] at 16 kHz.
        note: after the name.
    """

    name: str
    wave: np.ndarray
    note: str = ""


class ReportedPerson(NamedTuple):
    """Person of a separated recording.

    Attributes:
        label: name in the page.
        note: state and level, after the name.
        fields: of the person in ``result.json``.
    """

    label: str
    note: str
    fields: Fields


def people_of(separation: Separation) -> list[ReportedPerson]:
    """All people of ``result.json``."""
    people = []
    for position, fields in enumerate(separation.record.objects("people", MAX_PEOPLE), 1):
        number, level = fields.integer("number", 1), fields.number("level_db")
        note = [fields.text("state"), "" if level is None else f"{level:g} dB"]
        label = f"person {position if number is None else number}"
        people.append(ReportedPerson(label, ", ".join(filter(None, note)), fields))
    return people


def tracks_of(separation: Separation) -> list[AudioTrack]:
    """Mixture, voices of the first people with their true voices if known, and residual.

    Files that cannot be read are left out, and with them the mixture, which is the sum of all.
    """
    people = people_of(separation)
    voices = [_read(separation.folder, p.fields, "voice") for p in people[:SHOWN_PEOPLE]]
    residual = _read(separation.folder, separation.record, "residual")
    others = (_read(separation.folder, p.fields, "voice") for p in people[SHOWN_PEOPLE:])
    mixture = _sum([*voices, residual], others, separation)
    people = people[:SHOWN_PEOPLE]
    tracks = [] if mixture is None else [AudioTrack("mixture", mixture)]
    truth: list[AudioTrack] = []
    assignment: dict[int, int] = {}
    notes: dict[int, str] = {}
    if mixture is not None and residual is not None:
        gain = separation.record.number("gain") or 1.0
        truth = _truth(separation, mixture / gain)
        known = [voice for voice in voices if voice is not None]
        assignment, notes = _match(known, truth, mixture, gain)
    for number, (person, voice) in enumerate(zip(people, voices, strict=True)):
        if voice is None:
            continue
        tracks.append(AudioTrack(person.label, voice, f"{person.note}{notes.get(number, '')}"))
        if number in assignment:
            target = truth[assignment[number]]
            tracks.append(AudioTrack(f"{person.label}, truth", target.wave, target.name))
    for number, target in enumerate(truth):
        if number not in assignment.values():
            tracks.append(
                AudioTrack(f"truth: {target.name}", target.wave, "matches no separated voice")
            )
    if residual is not None:
        tracks.append(AudioTrack("residual", residual, "audio of no visible person"))
    return [_beginning(track) for track in tracks]


def _beginning(track: AudioTrack) -> AudioTrack:
    """Part of a track that a page has, with a note if that is not all of it."""
    limit = int(PAGE_SECONDS * SAMPLE_RATE)
    if len(track.wave) <= limit:
        return track
    parts = track.note, f"the first {PAGE_SECONDS:g} s; the file has all of it"
    return track._replace(wave=track.wave[:limit], note=", ".join(filter(None, parts)))


def _read(folder: Path, fields: Fields, name: str) -> np.ndarray | None:
    """Read the audio file that a field names.

    Returns:
        float32 [samples] at 16 kHz, at most :data:`MEASURED_SECONDS`; None: the file is left out.
    """
    try:
        with (
            open_inside(folder, fields.raw(name), AUDIO_BYTES) as file,
            soundfile.SoundFile(file) as audio,
        ):
            low, high = RATES
            if audio.channels != 1 or not low <= audio.samplerate <= high:
                raise FileRefused(f"has {audio.channels} channels at {audio.samplerate} Hz")
            wave = audio.read(int(MEASURED_SECONDS * audio.samplerate), dtype="float32")
            if not len(wave) or not np.isfinite(wave).all():
                raise FileRefused("is empty or holds values that are not finite")
            resampled: np.ndarray = resample(wave, audio.samplerate, SAMPLE_RATE)
            return resampled
    except FileRefused as refusal:
        fields.refuse(name, refusal)
    except (soundfile.SoundFileError, OSError) as error:
        fields.refuse(name, f"cannot be read ({error})")
    return None


def _sum(
    waves: Sequence[np.ndarray | None],
    others: Iterable[np.ndarray | None],
    separation: Separation,
) -> np.ndarray | None:
    """Sum of the tracks; those of ``others`` are in memory one at a time."""
    mixture: np.ndarray | None = None
    for wave in itertools.chain(waves, others):
        if wave is None:
            return None
        if mixture is not None and len(wave) != len(mixture):
            sentence = f"{separation.folder}: its tracks differ in length, so there is no mixture."
            separation.record.faults.add(sentence)
            return None
        mixture = wave if mixture is None else mixture + wave
    return mixture


def _truth(separation: Separation, mixture: np.ndarray) -> list[AudioTrack]:
    """True voices of a rendered clip; empty if the source is none or is not this recording.

    Args:
        separation: a separated recording.
        mixture: float32 [samples] of the recording, at the level of the source.
    """
    source, faults = separation.record.raw("source"), separation.record.faults
    if not isinstance(source, str) or is_url(source):
        return []
    folder = Path(source).parent
    try:
        if not (folder / TRUTH).is_file():
            return []
        if not _is_recording_of(source, mixture):
            faults.add(
                f"{folder / TRUTH} is left out: the audio of {source} differs from the recording."
            )
            return []
        people = Fields.load(folder, TRUTH, faults).objects("people", SHOWN_PEOPLE)
    except (CavmaeError, MediaError, OSError, ValueError) as error:
        faults.add(f"{folder / TRUTH} is left out: {error}")
        return []
    tracks = []
    for person in people:
        wave = _read(folder, person, "voice")
        if wave is not None:
            tracks.append(AudioTrack(f"{person.text('speaker')}, {person.text('role')}", wave))
    return tracks


def _is_recording_of(source: str, mixture: np.ndarray) -> bool:
    """Test whether the audio of a source is a mixture.

    Without this test a record could name any recording of this machine, and the page would hold
    the voices in its folder.
    """
    info = probe(source)
    if not info.audio_rate:
        return False
    audio = AudioReader(info)
    try:
        wave, _ = audio.read(0.0, len(mixture) / SAMPLE_RATE)
    finally:
        audio.close()
    wave = np.pad(wave, (0, max(0, len(mixture) - len(wave))))[: len(mixture)]
    return float(np.linalg.norm(wave - mixture)) <= TOLERANCE * float(np.linalg.norm(wave))


def _match(
    voices: Sequence[np.ndarray], truth: Sequence[AudioTrack], mixture: np.ndarray, gain: float
) -> tuple[dict[int, int], dict[int, str]]:
    """Assign separated voices to true voices by SI-SDR.

    Returns:
        indices into ``truth`` by indices of voices, and SI-SDR and its improvement as text.
    """
    audible = [n for n, t in enumerate(truth) if np.abs(t.wave).max() > 1e-3]
    if not audible or not voices:
        return {}, {}
    size = min(len(mixture), *(len(truth[n].wave) for n in audible))
    targets = torch.from_numpy(np.stack([truth[n].wave[:size] * gain for n in audible]))
    scores = torch.stack([_si_sdr(voice[:size], targets) for voice in voices])
    baseline = _si_sdr(mixture[:size], targets)
    rows, columns = linear_sum_assignment(-scores.nan_to_num(-99, 99, -99).numpy())
    assignment, notes = {}, {}
    for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
        assignment[row] = audible[column]
        si_sdr = float(scores[row, column])
        si_sdri = float(scores[row, column] - baseline[column])
        notes[row] = f"; SI-SDR {si_sdr:.1f} dB, improvement {si_sdri:+.1f} dB"
    return assignment, notes


def _si_sdr(wave: np.ndarray, targets: torch.Tensor) -> torch.Tensor:
    """SI-SDR in dB of a wave [samples] against each target [n, samples]: [n]."""
    estimates = torch.from_numpy(wave)[None].expand(len(targets), -1).contiguous()
    return scale_invariant_signal_distortion_ratio(estimates, targets, zero_mean=True)
