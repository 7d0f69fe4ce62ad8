"""Separation of a recording into one voice and one mask for each person.

>>> separator = Separator.from_pretrained("runs/speakers/checkpoints/000010000")
>>> files = separator.separate("meeting.mp4", "out/meeting")
>>> arrays = separator.separate_arrays(frames, waveform, sample_rate=48_000, frame_rate=30.0)
"""

import contextlib
import dataclasses
import functools
import json
import logging
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from cavmae.common.allocator import trim_memory
from cavmae.common.device import device_of
from cavmae.common.errors import UsageError
from cavmae.common.locks import locked
from cavmae.common.threads import single_threaded_blas
from cavmae.datasets.media import Probe, probe
from cavmae.datasets.media.geometry import cut_from
from cavmae.datasets.media.playback import Playback
from cavmae.datasets.sharding.sources import local_copy
from cavmae.datasets.stream.features import SAMPLE_RATE
from cavmae.finetune.inference.digests import weights_digest
from cavmae.finetune.inference.naming import scratch_of, source_facts
from cavmae.finetune.inference.predictor import WindowPredictor
from cavmae.finetune.inference.progress import ProgressCallback, ignore_progress, part_of
from cavmae.finetune.inference.recording_errors import recording_errors
from cavmae.finetune.inference.result_arrays import SeparatedArrays, collect_arrays
from cavmae.finetune.inference.result_files import SeparatedFiles, write_files
from cavmae.finetune.inference.separation import separate_media, sound_lead
from cavmae.finetune.inference.settings import SeparateSettings, Thresholds
from cavmae.finetune.inference.sources import ArraySource, check_arrays, working_size
from cavmae.finetune.inference.target import Target
from cavmae.finetune.models.box import default_speaker_model
from cavmae.finetune.speaker.factory import load_speaker
from cavmae.pretrain.engine.about import About

log = logging.getLogger("cavmae")
# Share of the first pass in the work if masks or an overlay follow. From 15 % (small model on the
# CPU) to 65 % (base) were measured; a GPU lowers it.
FIRST_PASS_FRACTION = 0.4


class Separator:
    """Speaker model for recordings of any length.

    Args:
        predictor: the model with its thresholds.
        name: source of the model, for the record.
        precision: precision of the model, for the record.
    """

    def __init__(self, predictor: WindowPredictor, name: str, precision: str):
        self._predictor = predictor
        self._name = name
        self._precision = precision

    @classmethod
    def from_pretrained(
        cls,
        name: str | None = None,
        device: str = "auto",
        precision: str = "fp32",
        thresholds: Thresholds = Thresholds(),  # noqa: B008 - frozen
    ) -> "Separator":
        """Load a speaker model.

        Args:
            name: checkpoint of `cavmae finetune speakers`, or a name in the box or on the hub;
                None: the speaker model in the box.
            device: ``auto``: a GPU if there is one.
            precision: ``fp32``, ``bf16`` or ``fp16``.
            thresholds: that decide which people, masks and speech there are.

        Raises:
            UsageError: no name, and there is not exactly one speaker model in the box.
            CavmaeError: the model or the device does not exist.
        """
        usable_device = device_of(device)
        if name is None:
            name = default_speaker_model()
        model, statistics = load_speaker(name)
        model = model.to(usable_device).eval()
        return cls(WindowPredictor(model, statistics, precision, thresholds), name, precision)

    def separate(
        self,
        path: str | Path,
        out: str | Path,
        settings: SeparateSettings | None = None,
        target: Target | None = None,
        progress: ProgressCallback | None = None,
    ) -> SeparatedFiles:
        """Separate a recording into files.

        Args:
            path: video file or URL.
            out: result folder; it appears complete or not at all.
            settings: options; None: the defaults.
            target: separate this person only; None: all people.
            progress: called with the fraction done, from 0 to 1; it never decreases.

        Raises:
            CavmaeError: the recording has no audio or no video, or too much of it does not
                decode; no person matches the target; the folder exists; the output of the model
                is not finite.
            FullDiskError: results cannot be written.
        """
        settings, progress = settings or SeparateSettings(), progress or ignore_progress
        video, out = str(path), Path(out)
        if out.exists():
            raise UsageError(f"{out} is there already: name another folder, or remove it.")
        out.parent.mkdir(parents=True, exist_ok=True)
        scratch = scratch_of(out)
        with (
            self._name_in_errors(video),
            single_threaded_blas(),
            locked(scratch, f"Another process is making {out}.", stop=False),
        ):
            if (scratch / "work").exists():
                log.info("%s: an interrupted run left it half done; it begins anew.", video)
            work, finished = _emptied(scratch / "work"), _emptied(scratch / "made")
            try:
                with local_copy(video, work) as local:
                    info = probe(local, settings.video_stream, settings.audio_stream)
                    self._separate_file(
                        video, info, work, finished, settings, target or Target(), progress
                    )
                finished.rename(out)
            finally:
                shutil.rmtree(work)
                # It is gone after a success.
                shutil.rmtree(finished, ignore_errors=True)
        progress(1.0)
        return SeparatedFiles.load(out)

    def separate_arrays(
        self,
        frames: np.ndarray,
        waveform: np.ndarray,
        sample_rate: int,
        frame_rate: float = 25.0,
        settings: SeparateSettings | None = None,
        target: Target | None = None,
        progress: ProgressCallback | None = None,
    ) -> SeparatedArrays:
        """Separate a recording in memory, by the same steps as a file.

        The recording lasts as long as the longer of frames and waveform. Waves and masks of key
        frames lie in a temporary folder meanwhile. Masks take T x H x W bytes a person.

        Args:
            frames: uint8 RGB [T, H, W, 3].
            waveform: float [S] or [S, channels], full scale 1.
            sample_rate: of the waveform, in Hz.
            frame_rate: of the frames, in Hz.
            settings: options; None: the defaults. Those of streams and videos do not matter;
                ``masks`` switches the masks off, and ``rate`` is that of the voices.
            target: separate this person only; None: all people.
            progress: called with the fraction done, from 0 to 1; it never decreases.

        Raises:
            UsageError: a shape, a type or a rate is wrong, or the waveform has NaN or Inf.
            CavmaeError: no person matches the target; the output of the model is not finite.
            FullDiskError: the temporary folder is full.
        """
        settings, progress = settings or SeparateSettings(), progress or ignore_progress
        check_arrays(frames, waveform, sample_rate, frame_rate)
        display = frames.shape[1], frames.shape[2]
        size = self._working_size(display, settings)
        media = ArraySource(frames, waveform, sample_rate, frame_rate, size)
        rate = sample_rate if settings.rate == "input" else SAMPLE_RATE
        samples = round(len(waveform) * rate / sample_rate)
        with (
            self._name_in_errors("frames and waveform"),
            single_threaded_blas(),
            tempfile.TemporaryDirectory(prefix="cavmae-") as folder,
        ):
            cue = (target or Target()).cue(display, media.seconds, self._predictor.config.samples)
            end = FIRST_PASS_FRACTION if settings.masks else 1.0
            separated = separate_media(
                self._predictor, "frames and waveform", media, 0, Path(folder), settings, cue,
                part_of(progress, 0.0, end),
            )  # fmt: skip
            arrays = collect_arrays(
                separated, frames.shape[:3], frame_rate, samples, rate, settings.masks,
                part_of(progress, end, 1.0),
            )  # fmt: skip
        progress(1.0)
        return arrays

    @property
    def about(self) -> About:
        """Facts about the model: its training data, and results to expect."""
        return self._predictor.speaker.model.about

    def check(self, settings: SeparateSettings) -> None:
        """Check the options that depend on the model.

        Raises:
            UsageError: it has no class of the hint's name, or sees too little at once for the
                offset of the sound.
        """
        self._predictor.class_number(settings.hint)
        sound_lead(self._predictor, settings)

    def provenance(self, video: str, settings: SeparateSettings, target: Target) -> dict[str, Any]:
        """Inputs that a result depends on, as ``result.json`` records them.

        Raises:
            CavmaeError: a file of the target cannot be read.
        """
        return {
            **source_facts(video),
            "model": self._name,
            "weights": self._weights,
            "precision": self._precision,
            "settings": dataclasses.asdict(settings),
            "thresholds": dataclasses.asdict(self._predictor.thresholds),
            "target_settings": json.loads(json.dumps(dataclasses.asdict(target))),
            "target_sha256": target.file_digest(),
        }

    @functools.cached_property
    def _weights(self) -> str:
        speaker = self._predictor.speaker
        return weights_digest(speaker.model, (speaker.model.config, speaker.statistics))

    def _separate_file(
        self, name: str, info: Probe, work: Path, out: Path, settings: SeparateSettings,
        target: Target, progress: ProgressCallback,
    ) -> None:  # fmt: skip
        for remark in info.remarks:
            log.warning("%s: %s.", name, remark)
        size = self._working_size(info.display, settings)
        end = FIRST_PASS_FRACTION if settings.masks or settings.overlay else 1.0
        with Playback(info, cut_from(info, size, size)) as playback:
            cue = target.cue(info.display, playback.seconds, self._predictor.config.samples)
            separated = separate_media(
                self._predictor, name, playback, info.audio_packets, work, settings, cue,
                part_of(progress, 0.0, end),
            )  # fmt: skip
        if settings.masks or settings.overlay:
            trim_memory()  # the model's activations make room for the encoders of videos
        provenance = self.provenance(name, settings, target)
        write_files(separated, info, out, settings, provenance, cue, part_of(progress, end, 1.0))

    def _name_in_errors(self, video: str) -> contextlib.AbstractContextManager[None]:
        return recording_errors(video, self._name, self._precision, _MEDIA_MESSAGES)

    def _working_size(
        self, display: tuple[int, int], settings: SeparateSettings
    ) -> tuple[int, int]:
        max_side = self._predictor.thresholds.max_frame_side if settings.second_look else None
        return working_size(display, self._predictor.config.encoder.image_size, max_side)


def _emptied(folder: Path) -> Path:
    """Create an empty folder, without the files of a killed run."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir()
    return folder


# Messages for recordings that cannot be separated.
_MEDIA_MESSAGES = {
    "no_audio": "it has no audio, so it has no voices to separate",
    "no_video": "it has no video, so it shows no people",
}
