"""Blocks of a separated recording: videos, who speaks when, audio players, spectrograms."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile
from av.error import FFmpegError

from cavmae.common.quoting import caption
from cavmae.datasets.format.sample import encode_frame
from cavmae.datasets.stream.features import SAMPLE_RATE
from cavmae.tools.reporting.audio_tracks import (
    SHOWN_PEOPLE,
    AudioTrack,
    ReportedPerson,
    people_of,
    tracks_of,
)
from cavmae.tools.reporting.blocks import (
    AudioPlayer,
    Gallery,
    Heading,
    PageBlock,
    Paragraph,
    Switch,
    Timeline,
    Video,
)
from cavmae.tools.reporting.charts import (
    SpeakingRow,
    data_url,
    max_magnitude,
    speaking_chart,
    spectrogram,
)
from cavmae.tools.reporting.fields import Fields, FileRefused, read_inside
from cavmae.tools.reporting.page_videos import VIDEO_PIXELS, page_video
from cavmae.tools.reporting.sources import Separation

POSTER = 20  # frame of a video that is displayed before it plays
VIDEO_BYTES = 256 << 20
MAX_SPANS = 10_000  # of a person


def examples(separations: Sequence[Separation]) -> list[PageBlock]:
    """Blocks of separated recordings; results of one recording share a switch."""
    groups: dict[Any, list[Separation]] = {}
    for number, separation in enumerate(separations):
        values = separation.record.values
        source = [values.get(name) for name in ("source_path", "source", "source_bytes")]
        known = any(isinstance(value, str) for value in source)
        same = source if source[0] is None else [source[0], values.get("source_digest")]
        key = json.dumps(same) if known else number
        groups.setdefault(key, []).append(separation)
    blocks: list[PageBlock] = []
    for number, group in enumerate(groups.values(), 1):
        if len(group) == 1:
            blocks += _example(group[0])
        else:
            title = caption(group[0].record.text("source") or group[0].name)
            panels = [(f"{s.name} ({s.record.text('model')})", _example(s)) for s in group]
            blocks.append(Heading(f"{len(group)} results of {title}"))
            blocks.append(Switch(f"recording-{number}", f"Result of {title}", panels))
    return blocks


def _example(separation: Separation) -> list[PageBlock]:
    """Blocks of one separated recording."""
    people = people_of(separation)
    seconds = separation.record.number("seconds")
    length = "" if seconds is None else f"{seconds:g} s, "
    count = f"{len(people)} {'person' if len(people) == 1 else 'people'}"
    blocks: list[PageBlock] = [
        Heading(separation.name),
        Paragraph(f"{length}{count} found by {separation.record.text('model')}."),
    ]
    outlined = f"{separation.name}: all people outlined and numbered"
    overlay = _videos(separation.folder, separation.record, "overlay", outlined, has_audio=True)
    if overlay:
        blocks.append(Gallery("videos", overlay))
    blocks += _speech(separation, people, seconds)
    if len(people) > SHOWN_PEOPLE:
        sentence = f"Masks and voices of the first {SHOWN_PEOPLE} of {len(people)} people follow."
        blocks.append(Paragraph(sentence))
    videos: list[Video] = []
    for person in people[:SHOWN_PEOPLE]:
        description = f"mask of {person.label}"
        videos += _videos(separation.folder, person.fields, "mask", description, has_audio=False)
    if videos:
        blocks.append(Gallery("videos", videos))
    tracks = tracks_of(separation)
    if tracks:
        reference = max_magnitude(tracks[0].wave)
        blocks.append(Gallery("tracks", [_recording(track, reference) for track in tracks]))
    return blocks


def _speech(
    separation: Separation, people: Sequence[ReportedPerson], seconds: float | None
) -> list[PageBlock]:
    """Chart of who speaks when; empty: no spans are recorded."""
    rows = [
        SpeakingRow(
            person.label, person.fields.integer("number", 1) or position,
            person.fields.spans("visible", MAX_SPANS), person.fields.spans("speech", MAX_SPANS),
        )
        for position, person in enumerate(people, 1)
        if "speech" in person.fields.values
    ]  # fmt: skip
    if not rows or not seconds or seconds < 0:
        return []
    title = f"{separation.name}: who is visible (thin) and speaks (thick)"
    return [Timeline(speaking_chart(title, rows, seconds), title)]


def _videos(folder: Path, fields: Fields, name: str, caption: str, has_audio: bool) -> list[Video]:
    """Player of the video that a field names; empty: no video, or an unusable one."""
    if fields.raw(name) is None:
        return []
    try:
        data, note = page_video(read_inside(folder, fields.raw(name), VIDEO_BYTES))
        poster = data_url(_poster(data), "image/jpeg")
    except FileRefused as refusal:
        fields.refuse(name, refusal)
        return []
    described = f"{caption} ({note}; the file has all of it)" if note else caption
    return [Video(data_url(data, "video/mp4"), poster, described, has_audio)]


def _poster(video: bytes) -> bytes:
    """Frame :data:`POSTER` of a video, or its last frame, as a JPEG.

    Raises:
        FileRefused: the file does not decode as MP4, or its frames are too large.
    """
    image: np.ndarray | None = None
    try:
        # With the format given, FFmpeg does not probe others, such as lists of further files.
        with av.open(io.BytesIO(video), "r", format="mp4") as container:
            for number, frame in enumerate(container.decode(video=0)):
                if frame.width * frame.height > VIDEO_PIXELS:
                    raise FileRefused(f"has frames of {frame.width}x{frame.height}")
                image = frame.to_ndarray(format="rgb24")
                if number == POSTER:
                    break
    except (FFmpegError, IndexError, ValueError) as error:
        raise FileRefused(f"does not decode as MP4 ({error})") from error
    if image is None:
        raise FileRefused("has no frames")
    return encode_frame(image, 85)


def _recording(track: AudioTrack, reference: float) -> AudioPlayer:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(track.wave, -1, 1), SAMPLE_RATE, format="FLAC")
    return AudioPlayer(
        data_url(buffer.getvalue(), "audio/flac"),
        spectrogram(track.wave, reference),
        track.name,
        track.note,
    )
