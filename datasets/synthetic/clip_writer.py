"""A clip's files: video, voices, masks, and what is true of them.

A clip is a folder that appears under its name whole or not at all::

    000123/000123.mp4       picture (H.264) and the mixture (AAC)
    000123/mixture.flac     exactly the sum of the sounds below
    000123/voice-1.flac     person 1 alone; one file a person, silent for who says nothing
    000123/off-screen.flac  a voice of nobody visible, where there is one
    000123/background.flac  noise and music, where there are any
    000123/masks/0000.png   one a frame: 0 background, body of person k 2k - 1, their face 2k
    000123/truth.json       everything else
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
import torch
from PIL import Image

from cavmae.common.errors import CavmaeError
from cavmae.common.files import flush_folder, write_atomically
from cavmae.common.json_files import JSONError, json_bytes, read_json
from cavmae.datasets.media.writing import VideoWriter
from cavmae.datasets.stream.features import SAMPLE_RATE
from cavmae.datasets.synthetic.mixing import Sounds, mix, active_spans, voice_activity
from cavmae.datasets.synthetic.population import Population
from cavmae.datasets.synthetic.script import Script, write_script
from cavmae.datasets.synthetic.settings import RenderSettings
from cavmae.datasets.synthetic.stage import Stage

SCHEMA = 1
OURS = re.compile(
    r"\d+\.mp4|(mixture|voice-\d+|off-screen|background)\.flac|masks/\d+\.png"
    r"|truth\.json|\.truth\.json\..*\.tmp"
)
TRUTH = "truth.json"
BEAT = 100  # frames


@dataclasses.dataclass(frozen=True)
class Shot:
    """What a worker needs to render a clip.

    Attributes:
        number: of the clip.
        folder: that will hold it.
        work: folder for what is unfinished, on the same file system.
    """

    number: int
    settings: RenderSettings
    population: Population
    folder: Path
    work: Path


def render(shot: Shot, beat: Callable[[Any], None]) -> dict[str, Any]:
    """Renders one clip into its folder.

    Args:
        beat: called with a number of frames now and then, as a sign of life.

    Returns:
        what the tables need of it: see :func:`row_of`.

    Raises:
        CavmaeError: a recording does not decode; the disk is full or read-only.
    """
    torch.set_num_threads(1)  # processes are the parallelism here
    script = write_script(shot.settings, shot.population, shot.number)
    sounds = mix(shot.settings, shot.population, script)
    working = shot.work / f"{shot.number:06d}"
    try:
        shutil.rmtree(working, ignore_errors=True)
        (working / "masks").mkdir(parents=True)
        truth = _write(working, shot, script, sounds, beat)
        _remove_clip(shot.folder)  # incomplete or altered: it is being made again
        working.rename(shot.folder)
    except OSError as error:
        raise CavmaeError(
            f"Cannot write {shot.folder}: {error.strerror or error}; what is done stays, run the "
            "same command again once that is mended."
        ) from error
    return table_row(truth)


def _remove_clip(folder: Path) -> None:
    """Removes what is left of a clip, and nothing else.

    Raises:
        CavmaeError: there is something that the program did not write.
    """
    if not folder.exists():
        return
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not OURS.fullmatch(name):
            raise CavmaeError(
                f"{folder} is to be made again, but holds {name!r}, which is not part of a clip: "
                "move that away and run the same command again."
            )
    shutil.rmtree(folder)


def _write(
    folder: Path, shot: Shot, script: Script, sounds: Sounds, beat: Callable[[Any], None]
) -> dict[str, Any]:
    settings = shot.settings
    video = f"{shot.folder.name}.mp4"
    stage = Stage(settings, shot.population, script, sounds.mouth_tracks)
    files: dict[str, int] = {}
    boxes: list[list[list[float]]] = [[] for _ in script.people]
    visible: list[list[bool]] = [[] for _ in script.people]
    with VideoWriter(
        folder / video, settings.size, settings.frame_rate, settings.quality, sounds.mixture
    ) as writer:
        for number, view in enumerate(stage.frames()):
            writer.write(number, view.pixels)
            if number % BEAT == BEAT - 1:
                beat(number)
            files[f"masks/{number:04d}.png"] = _write_mask(
                folder / "masks" / f"{number:04d}.png", view.labels
            )
            for person, box in enumerate(view.mouths):
                boxes[person].append([round(v, 1) for v in box])
                visible[person].append(view.visible[person])
    voices = {f"voice-{n}.flac": voice for n, voice in enumerate(sounds.voices, 1)}
    tracks = {"mixture.flac": sounds.mixture, **voices}
    if script.off_screen is not None:
        tracks["off-screen.flac"] = sounds.off_screen
    if script.noise is not None or script.music is not None:
        tracks["background.flac"] = sounds.background
    for name, samples in tracks.items():
        soundfile.write(os.fsencode(folder / name), samples, SAMPLE_RATE, subtype="PCM_16")
    for name in (*tracks, video):
        files[name] = (folder / name).stat().st_size
    truth = _truth(shot, script, sounds, stage, boxes, visible)
    truth["files"] = files
    flush_folder(folder / "masks")
    with write_atomically(folder / TRUTH) as file:
        file.write(json_bytes(truth))
    return truth


def _write_mask(path: Path, labels: np.ndarray) -> int:
    held = io.BytesIO()
    Image.fromarray(labels).save(held, "PNG", compress_level=1)
    data = held.getvalue()
    path.write_bytes(data)
    return len(data)


def _truth(
    shot: Shot,
    script: Script,
    sounds: Sounds,
    stage: Stage,
    boxes: list[list[list[float]]],
    visible: list[list[bool]],
) -> dict[str, Any]:
    settings = shot.settings
    people = []
    heard = []
    for number, person in enumerate(script.people):
        speaker = shot.population[person.speaker]
        active = voice_activity(
            sounds.voices[number], sounds.levels[number], settings.frames, settings.frame_rate
        )
        heard.append(any(active))
        people.append(
            {
                "speaker": person.speaker,
                # Chance may give a speaker a stretch of their recordings in which they pause.
                "role": "speaking" if heard[-1] else "silent",
                "activity": person.activity,
                "voice": f"voice-{number + 1}.flac",
                "level_db": round(person.level_db, 2),
                "pitch_hz": round(speaker.pitch_hz, 1),
                "speaking": active_spans(active, settings.frame_rate),
                "cover": None if person.cover is None else dataclasses.asdict(person.cover),
                "mask_values": {"body": 2 * number + 1, "face": 2 * number + 2},
                "mouth_boxes": boxes[number],
                "mouth_visible": visible[number],
                "mouth_opening": [round(float(v), 3) for v in stage.mouths[number][:, 0]],
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
        "labels": script.labels(heard),
        "shift_ms": script.shift_ms,
        "people": people,
        "off_screen": None if script.off_screen is None else dataclasses.asdict(script.off_screen),
        "noise": None
        if script.noise is None
        else {"kind": script.noise[0], "below_voice_db": round(script.noise[1], 2)},
        "music": None if script.music is None else {"below_voice_db": round(script.music, 2)},
    }


def read_complete(folder: Path) -> dict[str, Any] | None:
    """What :func:`row_of` tells of a clip whose files are all there, at their sizes; else None."""
    try:
        truth: dict[str, Any] = read_json(folder / TRUTH)
        for name, size in truth["files"].items():
            if (folder / name).stat().st_size != size:
                return None
        return table_row(truth)
    except (OSError, JSONError, ValueError, KeyError, TypeError, AttributeError):
        return None


def table_row(truth: dict[str, Any]) -> dict[str, Any]:
    """A clip's line in the tables: number, split, speakers, labels, seconds."""
    return {
        "clip": truth["clip"],
        "split": truth["split"],
        "speakers": [person["speaker"] for person in truth["people"]],
        "labels": truth["labels"],
        "seconds": truth["seconds"],
    }
