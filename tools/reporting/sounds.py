"""Sounds of a separated recording: its voices, and the truth where it is known.

Clips of `cavmae render-talkers` have their truth beside them; it is found by the name of the
source, and only taken if the source sounds like the recording.
"""

from collections.abc import Sequence
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
from cavmae.datasets.media.sound import Sound
from cavmae.datasets.stream.features import SAMPLE_RATE, resample
from cavmae.datasets.synthetic.clip_writer import TRUTH
from cavmae.tools.reporting.fields import Fields, FileRefused, open_inside
from cavmae.tools.reporting.sources import Separation

LONGEST = 30.0  # s of sound that a page holds
MEASURED = 120.0  # s of sound that is compared with the truth
SOUND_BYTES = 4 << 30
RATES = (4_000, 192_000)  # Hz
PEOPLE = 32  # of a recording that are shown
ALIKE = 0.1  # of a source's size, by which the recording may differ from it


class AudioTrack(NamedTuple):
    """Something to be heard.

    Attributes:
        name: that is shown.
        wave: float32 [samples] at 16 kHz.
        note: beside the name.
    """

    name: str
    wave: np.ndarray
    note: str = ""


class ReportedPerson(NamedTuple):
    """Somebody in a recording.

    Attributes:
        label: that they are shown under.
        note: beside it.
        fields: of the record.
    """

    label: str
    note: str
    fields: Fields


def people_of(separation: Separation) -> list[ReportedPerson]:
    """People of ``result.json``."""
    people = []
    for place, fields in enumerate(separation.record.objects("people", PEOPLE), 1):
        number, level = fields.whole("number", 1), fields.number("level_db")
        note = [fields.text("state"), "" if level is None else f"{level:g} dB"]
        label = f"person {place if number is None else number}"
        people.append(ReportedPerson(label, ", ".join(filter(None, note)), fields))
    return people


def tracks_of(separation: Separation) -> list[AudioTrack]:
    """The mixture, every voice beside its truth where that is known, and the rest.

    What cannot be read is left out; the mixture too, then, as it is their sum.
    """
    people = people_of(separation)
    voices = [_read(separation.folder, person.fields, "voice") for person in people]
    rest = _read(separation.folder, separation.record, "residual")
    mixture = _sum([*voices, rest], separation)
    tracks = [] if mixture is None else [AudioTrack("mixture", mixture)]
    truth: list[AudioTrack] = []
    matched: dict[int, int] = {}
    measured: dict[int, str] = {}
    if mixture is not None and rest is not None:
        gain = separation.record.number("gain") or 1.0
        truth = _truth(separation, mixture / gain)
        known = [voice for voice in voices if voice is not None]
        matched, measured = _matched(known, truth, mixture, gain)
    for number, (person, voice) in enumerate(zip(people, voices, strict=True)):
        if voice is None:
            continue
        tracks.append(AudioTrack(person.label, voice, f"{person.note}{measured.get(number, '')}"))
        if number in matched:
            true = truth[matched[number]]
            tracks.append(AudioTrack(f"{person.label}, truth", true.wave, true.name))
    for number, true in enumerate(truth):
        if number not in matched.values():
            tracks.append(
                AudioTrack(f"truth: {true.name}", true.wave, "nobody found has this voice")
            )
    if rest is not None:
        tracks.append(AudioTrack("residual", rest, "what belongs to nobody visible"))
    limit = int(LONGEST * SAMPLE_RATE)
    return [track._replace(wave=track.wave[:limit]) for track in tracks]


def _read(folder: Path, fields: Fields, name: str) -> np.ndarray | None:
    """Sound of the file that a field names.

    Returns:
        float32 [samples] at 16 kHz, :data:`MEASURED` at most; None: it is left out.
    """
    try:
        with (
            open_inside(folder, fields.raw(name), SOUND_BYTES) as file,
            soundfile.SoundFile(file) as sound,
        ):
            low, high = RATES
            if sound.channels != 1 or not low <= sound.samplerate <= high:
                raise FileRefused(f"has {sound.channels} channels at {sound.samplerate} Hz")
            wave = sound.read(int(MEASURED * sound.samplerate), dtype="float32")
            if not len(wave) or not np.isfinite(wave).all():
                raise FileRefused("holds no sound that can be played")
            resampled: np.ndarray = resample(wave, sound.samplerate, SAMPLE_RATE)
            return resampled
    except FileRefused as refusal:
        fields.refuse(name, refusal)
    except (soundfile.SoundFileError, OSError) as error:
        fields.refuse(name, f"cannot be read ({error})")
    return None


def _sum(waves: Sequence[np.ndarray | None], separation: Separation) -> np.ndarray | None:
    known = [wave for wave in waves if wave is not None]
    if len(known) < len(waves):
        return None
    if len({len(wave) for wave in known}) > 1:
        sentence = f"{separation.folder}: its sounds differ in length, so there is no mixture."
        separation.record.faults.add(sentence)
        return None
    mixture: np.ndarray = np.sum(known, axis=0)
    return mixture


def _truth(separation: Separation, mixture: np.ndarray) -> list[AudioTrack]:
    """True voices of a made clip; none if it is not one, or not what was taken apart.

    Args:
        mixture: of the recording, at the level of the source.
    """
    source, faults = separation.record.raw("source"), separation.record.faults
    if not isinstance(source, str) or is_url(source):
        return []
    folder = Path(source).parent
    try:
        if not (folder / TRUTH).is_file():
            return []
        if not _alike(source, mixture):
            faults.add(
                f"{folder / TRUTH} is left out: {source} does not sound like what was taken apart."
            )
            return []
        people = Fields.load(folder, TRUTH, faults).objects("people", PEOPLE)
    except (CavmaeError, MediaError, OSError, ValueError) as error:
        faults.add(f"{folder / TRUTH} is left out: {error}")
        return []
    tracks = []
    for person in people:
        wave = _read(folder, person, "voice")
        if wave is not None:
            tracks.append(AudioTrack(f"{person.text('speaker')}, {person.text('role')}", wave))
    return tracks


def _alike(source: str, mixture: np.ndarray) -> bool:
    """Whether a source is the recording that a mixture is of.

    A record could name any recording of this machine's, to have the voices beside it in a page.
    """
    info = probe(source)
    if not info.audio_rate:
        return False
    sound = Sound(info)
    try:
        wave, _ = sound.read(0.0, len(mixture) / SAMPLE_RATE)
    finally:
        sound.close()
    wave = np.pad(wave, (0, max(0, len(mixture) - len(wave))))[: len(mixture)]
    return float(np.linalg.norm(wave - mixture)) <= ALIKE * float(np.linalg.norm(wave))


def _matched(
    voices: Sequence[np.ndarray], truth: Sequence[AudioTrack], mixture: np.ndarray, gain: float
) -> tuple[dict[int, int], dict[int, str]]:
    """Which true voice each found one is, and how near it is, in words."""
    heard = [n for n, t in enumerate(truth) if np.abs(t.wave).max() > 1e-3]
    if not heard or not voices:
        return {}, {}
    size = min(len(mixture), *(len(truth[n].wave) for n in heard))
    true = torch.from_numpy(np.stack([truth[n].wave[:size] * gain for n in heard]))
    pairs = torch.stack([_si_sdr(voice[:size], true) for voice in voices])
    before = _si_sdr(mixture[:size], true)
    rows, columns = linear_sum_assignment(-pairs.nan_to_num(-99, 99, -99).numpy())
    matched, notes = {}, {}
    for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
        matched[row] = heard[column]
        value, gained = float(pairs[row, column]), float(pairs[row, column] - before[column])
        notes[row] = f"; SI-SDR {value:.1f} dB, {gained:+.1f} dB beside the mixture"
    return matched, notes


def _si_sdr(wave: np.ndarray, true: torch.Tensor) -> torch.Tensor:
    """Of a wave [samples] against each of some true ones [n, samples]: dB, [n]."""
    several = torch.from_numpy(wave)[None].expand(len(true), -1).contiguous()
    return scale_invariant_signal_distortion_ratio(several, true, zero_mean=True)
