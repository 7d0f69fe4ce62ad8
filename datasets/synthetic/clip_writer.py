"""Files of a clip: video, voices, masks and ground truth.

A clip is a folder that appears under its name whole or not at all::

    000123/000123.mp4       video (H.264) and the mixture (AAC)
    000123/mixture.flac     exactly the sum of the tracks below
    000123/voice-1.flac     person 1 alone; one file a person, digital silence without speech
    000123/off-screen.flac  voice of a person out of view, where there is one
    000123/background.flac  noise and music, where there are any
    000123/masks/0000.png   one a frame: 0 background, body of person k 2k - 1, their face 2k
    000123/truth.json       ground truth: people, times, labels
"""

import dataclasses
import io
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from PIL import Image

from cavmae.common.errors import CavmaeError
from cavmae.common.files import flush_folder, write_atomically
from cavmae.common.json_files import JSONError, json_bytes, read_json
from cavmae.common.threads import use_one_thread
from cavmae.datasets.media.writing import VideoWriter
from cavmae.datasets.stream.features import SAMPLE_RATE
from cavmae.datasets.synthetic.mixing import ClipAudio, active_spans, mix, voice_activity
from cavmae.datasets.synthetic.population import Population
from cavmae.datasets.synthetic.script import Script, write_script
from cavmae.datasets.synthetic.settings import QUALITY, TRUTH, RenderSettings
from cavmae.datasets.synthetic.stage import Stage

SCHEMA = 2
OWN_FILES = re.compile(
    r"\d+\.mp4|(mixture|voice-\d+|off-screen|background)\.flac|masks/\d+\.png"
    r"|truth\.json|\.truth\.json\..*\.tmp"
)
BEAT = 100  # frames


@dataclasses.dataclass(frozen=True)
class Shot:
    """Task of a worker: one clip to render.

    Attributes:
        number: of the clip.
        folder: that will hold it.
        work_folder: for unfinished clips, on the same file system.
    """

    number: int
    settings: RenderSettings
    population: Population
    folder: Path
    work_folder: Path


def render(shot: Shot, beat: Callable[[Any], None]) -> dict[str, Any]:
    """Render one clip into its folder.

    Args:
        beat: takes a frame number as a sign of life, every :data:`BEAT` frames.

    Returns:
        its row in the tables: see :func:`table_row`.

    Raises:
        CavmaeError: a recording does not decode; the disk is full or read-only.
    """
    use_one_thread()
    script = write_script(shot.settings, shot.population, shot.number)
    audio = mix(shot.settings, shot.population, script)
    temporary = shot.work_folder / f"{shot.number:06d}"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        (temporary / "masks").mkdir(parents=True)
        truth = _write(temporary, shot, script, audio, beat)
        _remove_clip(shot.folder)  # incomplete or altered: it is rendered again
        temporary.rename(shot.folder)
    except OSError as error:
        raise CavmaeError(
            f"Cannot write {shot.folder}: {error.strerror or error}; finished work is kept; "
            "fix this and run the same command again."
        ) from error
    return table_row(truth)


def _remove_clip(folder: Path) -> None:
    """Remove the files of an incomplete clip.

    Raises:
        CavmaeError: the folder holds a file that is not part of a clip.
    """
    if not folder.exists():
        return
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not OWN_FILES.fullmatch(name):
            raise CavmaeError(
                f"{folder} is to be rendered again, but holds {name!r}, no part of a clip: "
                "move that away and run the same command again."
            )
    shutil.rmtree(folder)


def _write(
    folder: Path, shot: Shot, script: Script, audio: ClipAudio, beat: Callable[[Any], None]
) -> dict[str, Any]:
    settings = shot.settings
    video = f"{shot.folder.name}.mp4"
    stage = Stage(settings, shot.population, script, audio.mouth_tracks)
    files: dict[str, int] = {}
    boxes: list[list[list[float]]] = [[] for _ in script.people]
    visible: list[list[bool]] = [[] for _ in script.people]
    with VideoWriter(
        folder / video, settings.size, settings.frame_rate, QUALITY, audio.mixture
    ) as writer:
        for number, view in enumerate(stage.frames()):
            writer.write(number, view.pixels)
            if number % BEAT == BEAT - 1:
                beat(number)
            files[f"masks/{number:04d}.png"] = _write_mask(
                folder / "masks" / f"{number:04d}.png", view.labels
            )
            for person, box in enumerate(view.mouths):
                boxes[person].append(list(box))
                visible[person].append(view.visible[person])
    voices = {f"voice-{n}.flac": voice for n, voice in enumerate(audio.voices, 1)}
    tracks = {"mixture.flac": audio.mixture, **voices}
    if script.off_screen is not None:
        tracks["off-screen.flac"] = audio.off_screen
    if script.noise is not None or script.music is not None:
        tracks["background.flac"] = audio.background
    for name, samples in tracks.items():
        soundfile.write(os.fsencode(folder / name), samples, SAMPLE_RATE, subtype="PCM_16")
    for name in (*tracks, video):
        files[name] = (folder / name).stat().st_size
    truth = _truth(shot, script, audio, stage, boxes, visible)
    truth["files"] = files
    flush_folder(folder / "masks")
    with write_atomically(folder / TRUTH) as file:
        file.write(json_bytes(truth))
    return truth


def _write_mask(path: Path, labels: np.ndarray) -> int:
    buffer = io.BytesIO()
    Image.fromarray(labels).save(buffer, "PNG", compress_level=1)
    data = buffer.getvalue()
    path.write_bytes(data)
    return len(data)


def _truth(
    shot: Shot,
    script: Script,
    audio: ClipAudio,
    stage: Stage,
    boxes: list[list[list[float]]],
    visible: list[list[bool]],
) -> dict[str, Any]:
    settings = shot.settings
    people = []
    audible = []
    for number, person in enumerate(script.people):
        speaker = shot.population[person.speaker]
        active = voice_activity(
            audio.voices[number], audio.levels[number], settings.frames, settings.frame_rate
        )
        audible.append(any(active))
        people.append(
            {
                "speaker": person.speaker,
                # A random stretch of a recording may be one long pause.
                "role": "speaking" if audible[-1] else "silent",
                "activity": person.activity,
                "voice": f"voice-{number + 1}.flac",
                "level_db": round(person.level_db, 2),
                "pitch_hz": round(speaker.pitch_hz, 1),
                "speaking": active_spans(active, settings.frame_rate),
                "cover": _record(person.cover),
                "mask_values": {"body": 2 * number + 1, "face": 2 * number + 2},
                "mouth_boxes": boxes[number],
                "mouth_visible": visible[number],
                "mouth_opening": [round(float(v), 3) for v in stage.mouths[number][:, 0]],
                "yaw_degrees": [round(float(v), 1) for v in stage.yaws[number]],
                "gesture": _record(person.staging.gesture),
                "walk": _record(person.staging.walk),
            }
        )
    return {
        "schema": SCHEMA,
        "clip": script.clip,
        "split": script.split,
        "seed": settings.seed,
        "seconds": settings.length,
        "frames": settings.frames,
        "frame_rate": settings.frame_rate,
        "frame_size": [settings.size[1], settings.size[0]],
        "sample_rate": SAMPLE_RATE,
        "labels": script.labels(audible),
        "shift_ms": script.shift_ms,
        "people": people,
        "objects": list(script.staging.objects),
        "lone_hands": [dataclasses.asdict(hand) for hand in script.staging.lone_hands],
        "off_screen": _record(script.off_screen),
        "noise": None
        if script.noise is None
        else {"kind": script.noise[0], "below_voice_db": round(script.noise[1], 2)},
        "music": None if script.music is None else {"below_voice_db": round(script.music, 2)},
    }


def _record(part: Any) -> dict[str, Any] | None:
    return None if part is None else dataclasses.asdict(part)


def read_complete(folder: Path) -> dict[str, Any] | None:
    """Row of a clip in the tables; None unless all files are there at their sizes."""
    try:
        truth: dict[str, Any] = read_json(folder / TRUTH)
        for name, size in truth["files"].items():
            if (folder / name).stat().st_size != size:
                return None
        return table_row(truth)
    except (OSError, JSONError, ValueError, KeyError, TypeError, AttributeError):
        return None


def table_row(truth: dict[str, Any]) -> dict[str, Any]:
    """Row of a clip in the tables: number, split, speakers, labels, seconds."""
    return {
        "clip": truth["clip"],
        "split": truth["split"],
        "speakers": [person["speaker"] for person in truth["people"]],
        "labels": truth["labels"],
        "seconds": truth["seconds"],
    }
