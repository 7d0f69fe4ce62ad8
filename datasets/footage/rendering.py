"""Rendering of a list of recordings: video files as users have them, and their ground truth."""

import dataclasses
import logging
import random
from pathlib import Path

import numpy as np

from cavmae.common.errors import CavmaeError, SampleError, UsageError
from cavmae.common.files import make_folder
from cavmae.common.locks import locked
from cavmae.common.progress import Progress
from cavmae.datasets.footage.composer import FootageComposer
from cavmae.datasets.footage.sampler import FootageSampler
from cavmae.datasets.footage.spec import (
    FootageSettings,
    FootageSpec,
    read_footage_list,
    write_footage_list,
)
from cavmae.datasets.footage.truth import FootageTruth
from cavmae.datasets.format.manifest import Manifest
from cavmae.datasets.media.writing import VideoWriter
from cavmae.datasets.mixtures.clip_pool import ClipPool
from cavmae.datasets.mixtures.scene_spec import NOT_SINGLE
from cavmae.datasets.stream.rates import VIDEO_RATE

log = logging.getLogger("cavmae")
LIST = "footage.jsonl"
WORK = ".unfinished"  # folder of a recording while it is rendered
QUALITY = 20.0  # CRF of the H.264 video (x264)
CUT_OFF = "cut_off"  # label of clips in which the frame cuts a head, which no cut-out may show


def video_path(folder: Path, name: str) -> Path:
    """Path of the video file of a recording."""
    return folder / f"{name}.mp4"


def truth_path(folder: Path, name: str) -> Path:
    """Path of the ground truth of a recording."""
    return folder / f"{name}.npz"


def make_footage(shards: str, out: Path, settings: FootageSettings) -> None:
    """Draws a list of recordings, and renders them; finished ones are kept.

    The folder gets ``footage.jsonl``, and ``NAME.mp4`` and ``NAME.npz`` for each recording. A list
    that is there already is rendered instead of a new one.

    Args:
        shards: folder or URL of shards of single talkers.
        out: folder of the recordings.
        settings: distribution of the recordings.

    Raises:
        UsageError: the folder has a list of other settings; the shards have too few people.
        CavmaeError: the list or the shards cannot be used, or another process renders them.
    """
    make_folder(out)
    pool = ClipPool(Manifest.load(shards), exclude=(*NOT_SINGLE, CUT_OFF))
    work = out / WORK
    with locked(work, f"Another process renders recordings to {out}: wait for it."):
        specs = _read_or_draw(pool, out / LIST, settings)
        missing = [spec for spec in specs if not _is_rendered(out, spec)]
        composer = FootageComposer(pool)
        with Progress(len(specs), "recording", len(specs) - len(missing)) as progress:
            for spec in missing:
                render(composer, spec, work, out)
                progress.done()
    pool.close()
    log.info("%s has %d recordings, %d of them new.", out, len(specs), len(missing))


def _read_or_draw(pool: ClipPool, path: Path, settings: FootageSettings) -> list[FootageSpec]:
    if not path.exists():
        sampler = FootageSampler(pool, settings)
        specs = [
            sampler.sample(
                f"{kind}-{number:04d}", kind, random.Random(f"{kind} {settings.seed} {number}")
            )
            for kind in settings.kinds
            for number in range(settings.count)
        ]
        write_footage_list(path, settings, specs)
        return specs
    listed, specs = read_footage_list(path)
    for field in dataclasses.fields(settings):
        value, own = getattr(settings, field.name), getattr(listed, field.name)
        if value not in (field.default, own):
            raise UsageError(
                f"{path} is there already, with {field.name.replace('_', '-')} {own}, not {value}: "
                "name another --out, or leave the option out to render that list."
            )
    lacking = sorted({key for spec in specs for key in spec.clip_keys} - pool.index_of.keys())
    if lacking:
        raise UsageError(
            f"{path} names the clip {lacking[0]}, which {pool.manifest.folder} does not have: use "
            "the data set that the list was drawn from."
        )
    return specs


def _is_rendered(folder: Path, spec: FootageSpec) -> bool:
    return all(path(folder, spec.name).exists() for path in (video_path, truth_path))


def render(composer: FootageComposer, spec: FootageSpec, work: Path, out: Path) -> None:
    """Renders a recording; its files appear complete, the truth last.

    Args:
        work: folder on the same disk for the unfinished video.
        out: folder of the recordings.

    Raises:
        CavmaeError: a clip of the recording is broken, or a file cannot be written.
    """
    unfinished = video_path(work, spec.name)
    try:
        mixed = composer.compose_audio(spec)
        people = np.zeros((spec.frames, *spec.size), dtype=np.uint8)
        number = 0
        with VideoWriter(unfinished, spec.size[::-1], VIDEO_RATE, QUALITY, mixed.mixture) as video:
            for block in composer.compose_frames(spec):
                people[number : number + len(block.people)] = block.people
                for frame in block.frames:
                    video.write(number, frame)
                    number += 1
        truth_path(out, spec.name).unlink(missing_ok=True)  # of a video that was removed
        unfinished.replace(video_path(out, spec.name))
        FootageTruth(people, mixed.parts).save(truth_path(out, spec.name))
    except SampleError as error:
        raise CavmaeError(
            f"{spec.name} needs a clip that is broken ({error}): run `cavmae check` on the shards."
        ) from error
    except OSError as error:
        raise CavmaeError(
            f"Cannot write {spec.name} to {out}: {error.strerror or error}; finished recordings "
            "are kept, so free disk and run the same command again."
        ) from error
    finally:
        unfinished.unlink(missing_ok=True)
