"""A separated recording on a page: players, spectrograms and videos."""

import io
from pathlib import Path

import av
import numpy as np
import soundfile
from av.error import FFmpegError

from cavmae.datasets.format.sample import encode_frame
from cavmae.datasets.stream.features import SAMPLE_RATE
from cavmae.tools.reporting.blocks import (
    Block,
    Heading,
    Paragraph,
    RecordingBlock,
    Recordings,
    Video,
    Videos,
)
from cavmae.tools.reporting.charts import data_url, loudest, spectrogram
from cavmae.tools.reporting.fields import Fields, FileRefused, read_inside
from cavmae.tools.reporting.sounds import AudioTrack, people_of, tracks_of
from cavmae.tools.reporting.sources import Separation

POSTER = 20  # frame of a video that is shown before it plays
VIDEO_BYTES = 256 << 20
VIDEO_PIXELS = 4096 * 4096


def example(separation: Separation) -> list[Block]:
    """Blocks of one recording."""
    people = people_of(separation)
    seconds = separation.record.number("seconds")
    length = "" if seconds is None else f"{seconds:g} s, "
    count = f"{len(people)} {'person' if len(people) == 1 else 'people'}"
    blocks: list[Block] = [
        Heading(separation.name),
        Paragraph(f"{length}{count} found by {separation.record.text('model')}."),
    ]
    outlined = f"{separation.name}: everybody outlined and numbered"
    videos = _videos(separation.folder, separation.record, "overlay", outlined, sound=True)
    for person in people:
        description = f"mask of {person.label}"
        videos += _videos(separation.folder, person.fields, "mask", description, sound=False)
    if videos:
        blocks.append(Videos(videos))
    tracks = tracks_of(separation)
    if tracks:
        top = loudest(tracks[0].wave)
        blocks.append(Recordings([_recording(track, top) for track in tracks]))
    return blocks


def _videos(folder: Path, fields: Fields, name: str, caption: str, sound: bool) -> list[Video]:
    """The video that a field names; empty: there is none, or it is left out."""
    if fields.raw(name) is None:
        return []
    try:
        data = read_inside(folder, fields.raw(name), VIDEO_BYTES)
        poster = data_url(_poster(data), "image/jpeg")
    except FileRefused as refusal:
        fields.refuse(name, refusal)
        return []
    return [Video(data_url(data, "video/mp4"), poster, caption, sound)]


def _poster(video: bytes) -> bytes:
    """A frame from the first second of a video, or its last, as a JPEG.

    Raises:
        FileRefused: it is no MP4 that decodes.
    """
    picture: np.ndarray | None = None
    try:
        # Named, so that no other kind of file, such as a list of files, passes for a video.
        with av.open(io.BytesIO(video), "r", format="mp4") as container:
            for number, frame in enumerate(container.decode(video=0)):
                if frame.width * frame.height > VIDEO_PIXELS:
                    raise FileRefused(f"has pictures of {frame.width}x{frame.height}")
                picture = frame.to_ndarray(format="rgb24")
                if number == POSTER:
                    break
    except (FFmpegError, IndexError, ValueError) as error:
        raise FileRefused(f"does not decode as MP4 ({error})") from error
    if picture is None:
        raise FileRefused("has no picture")
    return encode_frame(picture, 85)


def _recording(track: AudioTrack, top: float) -> RecordingBlock:
    held = io.BytesIO()
    soundfile.write(held, np.clip(track.wave, -1, 1), SAMPLE_RATE, format="FLAC")
    return RecordingBlock(
        data_url(held.getvalue(), "audio/flac"),
        spectrogram(track.wave, top),
        track.name,
        track.note,
    )
