"""A separated recording on a page: players, spectrograms, videos, and the truth where it is known.

Clips of `cavmae render-talkers` have their truth beside them; it is found by the name of the
source.
"""

import io
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import soundfile
import torch
from scipy.optimize import linear_sum_assignment
from torchmetrics.functional.audio import scale_invariant_signal_distortion_ratio

from cavmae.datasets.errors import CavmaeError
from cavmae.datasets.features import SAMPLE_RATE, resample
from cavmae.datasets.sample import encode_frame
from cavmae.tools.reporting.charts import data_url, loudest, spectrogram
from cavmae.tools.reporting.sources import Separation
from cavmae.tools.talkers.film import TRUTH

LONGEST = 30.0  # s of sound that a page holds
POSTER = 20  # frame of a video that is shown before it plays


class Track(NamedTuple):
    """Something to be heard.

    Attributes:
        name: that is shown.
        wave: float32 [samples] at 16 kHz.
        note: beside the name.
    """

    name: str
    wave: np.ndarray
    note: str = ""


def tracks_of(separation: Separation) -> list[Track]:
    """The mixture, every voice beside its truth where that is known, and the rest."""
    result = separation.result
    voices = [_read(person.voice) for person in result.people]
    rest = _read(result.residual)
    mixture = np.sum([*voices, rest], axis=0)
    truth = truth_of(Path(result.record["source"]))
    tracks = [Track("mixture", mixture)]
    matched, measured = _matched(voices, truth, mixture, float(result.record["gain"]))
    for number, (person, voice) in enumerate(zip(result.people, voices, strict=True)):
        state = f"{person.record['state']}, {person.record['level_db']:g} dB"
        note = f"{state}{measured.get(number, '')}"
        tracks.append(Track(f"person {person.number}", voice, note))
        if number in matched:
            told = truth[matched[number]]
            tracks.append(Track(f"person {person.number}, truth", told.wave, told.name))
    for number, told in enumerate(truth):
        if number not in matched.values():
            tracks.append(Track(f"truth: {told.name}", told.wave, "nobody found has this voice"))
    tracks.append(Track("residual", rest, "what belongs to nobody visible"))
    limit = int(LONGEST * SAMPLE_RATE)
    return [track._replace(wave=track.wave[:limit]) for track in tracks]


def _read(path: Path) -> np.ndarray:
    try:
        wave, rate = soundfile.read(str(path), dtype="float32")
    except (soundfile.SoundFileError, OSError) as error:
        raise CavmaeError(f"{path} cannot be read: {error}.") from error
    return resample(np.ascontiguousarray(wave), rate, SAMPLE_RATE)


def truth_of(source: Path) -> list[Track]:
    """True voices of a made clip; none if it is not one."""
    path = source.parent / TRUTH
    if not path.is_file():
        return []
    told = json.loads(path.read_text())
    return [
        Track(f"{person['speaker']}, {person['role']}", _read(path.parent / person["voice"]))
        for person in told["people"]
    ]


def _matched(
    voices: Sequence[np.ndarray], truth: Sequence[Track], mixture: np.ndarray, gain: float
) -> tuple[dict[int, int], dict[int, str]]:
    """Which true voice each found one is, and how near it is, in words."""
    heard = [n for n, t in enumerate(truth) if np.abs(t.wave).max() > 1e-3]
    if not heard or not voices:
        return {}, {}
    size = min(len(mixture), *(len(truth[n].wave) for n in heard))
    found = torch.from_numpy(np.stack([v[:size] for v in voices]))
    true = torch.from_numpy(np.stack([truth[n].wave[:size] * gain for n in heard]))
    pairs = scale_invariant_signal_distortion_ratio(
        found[:, None].expand(-1, len(heard), -1).contiguous(),
        true[None].expand(len(voices), -1, -1).contiguous(), zero_mean=True,
    )  # fmt: skip
    before = scale_invariant_signal_distortion_ratio(
        torch.from_numpy(mixture[:size])[None].expand(len(heard), -1).contiguous(), true,
        zero_mean=True,
    )  # fmt: skip
    rows, columns = linear_sum_assignment(-pairs.nan_to_num(-99, 99, -99).numpy())
    matched, notes = {}, {}
    for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
        matched[row] = heard[column]
        value, gained = float(pairs[row, column]), float(pairs[row, column] - before[column])
        notes[row] = f"; SI-SDR {value:.1f} dB, {gained:+.1f} dB beside the mixture"
    return matched, notes


def example(separation: Separation) -> str:
    """HTML of one recording."""
    result = separation.result
    name = escape(separation.name)
    parts = [f"<h3>{name}</h3>"]
    seconds = result.record["seconds"]
    people = len(result.people)
    parts.append(
        f"<p>{seconds:g} s, {people} {'person' if people == 1 else 'people'} found by "
        f"{escape(str(result.record['model']))}.</p>"
    )
    videos = []
    if result.overlay is not None:
        videos.append(
            _video(result.overlay, f"{name}: everybody outlined and numbered", sound=True)
        )
    for person in result.people:
        if person.mask is not None:
            videos.append(_video(person.mask, f"mask of person {person.number}", sound=False))
    if videos:
        parts.append(f'<div class="videos">{"".join(videos)}</div>')
    tracks = tracks_of(separation)
    top = loudest(tracks[0].wave)
    parts.append('<div class="tracks">' + "".join(_track(t, top) for t in tracks) + "</div>")
    return "".join(parts)


def _video(path: Path, told: str, sound: bool) -> str:
    url = data_url(path.read_bytes(), "video/mp4")
    muted = "" if sound else " muted loop"
    return (
        f'<figure><video controls playsinline preload="metadata"{muted} src="{url}" '
        f'poster="{_poster(path)}" '
        f'aria-label="{told}"></video><figcaption>{told}</figcaption></figure>'
    )


def _poster(path: Path) -> str:
    """A frame from the first second of a video, or its last, as a data URL."""
    with av.open(str(path)) as container:
        for number, frame in enumerate(container.decode(video=0)):
            picture = frame.to_ndarray(format="rgb24")
            if number == POSTER:
                break
    return data_url(encode_frame(picture, 85), "image/jpeg")


def _track(track: Track, top: float) -> str:
    held = io.BytesIO()
    soundfile.write(held, np.clip(track.wave, -1, 1), SAMPLE_RATE, format="FLAC")
    url = data_url(held.getvalue(), "audio/flac")
    name, note = escape(track.name), escape(track.note)
    return (
        f'<figure class="track"><figcaption><b>{name}</b> {note}</figcaption>'
        f'<img src="{spectrogram(track.wave, top)}" alt="Spectrogram of {name}: kHz over seconds, '
        f"in dB below the mixture's loudest\">"
        f'<audio controls preload="metadata" src="{url}" aria-label="{name}"></audio></figure>'
    )
