"""Banks of recordings: whole folders decoded once, and held in memory as one tensor.

8.6 hours of speech are 1 GB of int16, which lies on the training device, so that mixtures are made
there without a loader. The bank of a list of folders is cached as one file of tensors.
"""

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

from cavmae.common import worker_pool
from cavmae.common.errors import CavmaeError
from cavmae.common.files import write_atomically
from cavmae.common.json_files import json_bytes
from cavmae.common.progress import Progress
from cavmae.common.threads import cores, use_one_thread
from cavmae.datasets.media.audio_files import AudioFileError
from cavmae.datasets.stream.features import SAMPLE_RATE
from cavmae.datasets.synthetic.articulation import MOUTH_RATE, SMOOTHING, STEP, from_audio
from cavmae.datasets.synthetic.recordings import active_level, list_recordings, read, reader_of

log = logging.getLogger("cavmae")
SCHEMA = 1
CUE_CHANNELS = 4  # opening, spread, teeth, tongue: a mouth track of `articulation`
CUE_SCALE = 127.0  # of int8
SHORTEST = SAMPLE_RATE // 2  # samples: shorter recordings are left out
QUIETEST = -60.0  # dB: likewise
TASK_FILES = 24  # files of a worker's task
TIMEOUT, MEMORY = 300.0, 4e9  # s, bytes


class RecordingBank(NamedTuple):
    """Recordings, one after the other, on one device.

    Attributes:
        samples: int16 [samples], at 16 kHz.
        starts: int64 [R], first sample of each recording.
        lengths: int64 [R], in samples, multiples of 160.
        speakers: int64 [R], number of the speaker in ``names``.
        levels: float32 [R], RMS of the active parts in dB of full scale.
        cues: int8 [samples / 160, 4], the mouth track of each recording at 100 Hz (see
            :mod:`cavmae.datasets.synthetic.articulation`), smoothed, times 127.
        names: of the speakers.
        pitches: float32 [speakers], median F0 in Hz; None: not measured. Not in the cache.
    """

    samples: Tensor
    starts: Tensor
    lengths: Tensor
    speakers: Tensor
    levels: Tensor
    cues: Tensor
    names: tuple[str, ...]
    pitches: Tensor | None = None

    @property
    def seconds(self) -> float:
        """Length of all recordings together."""
        return len(self.samples) / SAMPLE_RATE

    def to(self, device: torch.device) -> "RecordingBank":
        """Bank with samples and cues on a device; what recordings are drawn from stays."""
        return self._replace(samples=self.samples.to(device), cues=self.cues.to(device))


def load_or_build_bank(folders: Sequence[Path], cache: Path, workers: int = 0) -> RecordingBank:
    """Loads the bank of folders of recordings from the cache, else builds it.

    Args:
        folders: their files' names up to the first ``-`` or ``_`` name the speakers; files with
            other names are of one speaker, so that no two of them are mixed.
        cache: folder of cached banks; a bank is used while names and sizes of files are the same.
        workers: processes that decode; 0: one for each core.

    Raises:
        UsageError: a folder is missing or without recordings.
        CavmaeError: no recording can be used, or the cached bank is damaged.
    """
    files = [
        (reader_of(Path(folder.name) / name), folder / name)
        for folder in folders
        for _, name in list_recordings(folder)
    ]
    sizes = [[str(path.resolve()), path.stat().st_size] for _, path in files]
    digest = hashlib.sha256(json_bytes([SCHEMA, sizes])).hexdigest()[:16]
    path = cache / f"bank-{digest}.safetensors"
    if path.is_file():
        return _read_bank(path)
    bank = _build_bank(files, workers or cores())
    cache.mkdir(parents=True, exist_ok=True)
    tensors = {name: v for name, v in bank._asdict().items() if isinstance(v, Tensor)}
    with write_atomically(path) as file:
        file.write(save(tensors, {"names": json.dumps(bank.names)}))
    return bank


def _read_bank(path: Path) -> RecordingBank:
    try:
        with safe_open(str(path), "pt") as file:
            names = tuple(json.loads(file.metadata()["names"]))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return RecordingBank(names=names, **tensors)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise CavmaeError(f"{path} is damaged ({error}): remove it, it is made anew.") from error


def _build_bank(files: Sequence[tuple[str, Path]], workers: int) -> RecordingBank:
    paths = [str(path) for _, path in files]
    chunks = [paths[i : i + TASK_FILES] for i in range(0, len(paths), TASK_FILES)]
    decoded: dict[str, tuple[np.ndarray, float, np.ndarray]] = {}
    events = worker_pool.run(
        iter(enumerate(chunks)), decode_recordings, min(workers, len(chunks)), TIMEOUT, MEMORY
    )
    with Progress(len(chunks), "part") as progress, contextlib.closing(events):
        for event in events:
            if isinstance(event, worker_pool.TaskProgress | worker_pool.Restarted):
                continue
            if isinstance(event, worker_pool.Lost):
                log.warning("Recordings are left out (%s): %s.", event.reason, event.detail)
            else:
                decoded |= event.result
            progress.done()
    used = [(reader, decoded[str(path)]) for reader, path in files if str(path) in decoded]
    if not used:
        raise CavmaeError(
            f"None of the {len(files)} recordings in {files[0][1].parent} can be used: they are "
            "damaged, silent or shorter than half a second."
        )
    if len(used) < len(files):
        log.warning("%d of %d recordings are not used.", len(files) - len(used), len(files))
    names = tuple(sorted({reader for reader, _ in used}))
    numbers = {name: number for number, name in enumerate(names)}
    lengths = torch.tensor([len(samples) for _, (samples, _, _) in used])
    return RecordingBank(
        samples=torch.from_numpy(np.concatenate([samples for _, (samples, _, _) in used])),
        starts=lengths.cumsum(0) - lengths,
        lengths=lengths,
        speakers=torch.tensor([numbers[reader] for reader, _ in used]),
        levels=torch.tensor([level for _, (_, level, _) in used]),
        cues=torch.from_numpy(np.concatenate([cue for _, (_, _, cue) in used])),
        names=names,
    )


def decode_recordings(paths: Sequence[str], report: Callable[[Any], None]) -> dict[str, Any]:
    """Samples, level and cues of recordings by path. Runs in a worker process."""
    os.environ["OMP_NUM_THREADS"] = "1"
    use_one_thread()
    decoded = {}
    for path in paths:
        try:
            waveform = read(Path(path))
        except AudioFileError as error:
            log.warning("%s", error)
            continue
        report(None)
        waveform = waveform[: len(waveform) // STEP * STEP]
        level = active_level(waveform)
        if len(waveform) < SHORTEST or level < QUIETEST:
            continue
        track = gaussian_filter1d(
            from_audio(waveform, level), SMOOTHING * MOUTH_RATE, axis=0, mode="nearest"
        )
        samples = np.round(waveform.clip(-1, 1) * 32767).astype(np.int16)
        cue = np.round(track.clip(-1, 1) * CUE_SCALE).astype(np.int8)
        decoded[path] = samples, level, cue
    return decoded
