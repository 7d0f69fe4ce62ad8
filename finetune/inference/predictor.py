"""Prediction of the people of one window, in the coordinates of the frames of the recording."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from cavmae.common.boxes import WHOLE, Box
from cavmae.common.errors import UsageError
from cavmae.datasets.mixtures.compositing import GREY
from cavmae.datasets.stream.transforms import Statistics
from cavmae.datasets.synthetic.articulation import OPENING
from cavmae.finetune.inference.appearance import appearance
from cavmae.finetune.inference.settings import Thresholds
from cavmae.finetune.inference.slot_merging import (
    merge_slots,
    without_copies,
    without_specks,
)
from cavmae.finetune.speaker.cues import KINDS, CueKind, Cues, no_cues, region_of
from cavmae.finetune.speaker.model import SpeakerModel
from cavmae.finetune.speaker.model_tensors import (
    MASK_STRIDE,
    NONE,
    OFF_SCREEN,
    Inputs,
    MixtureEncoding,
)
from cavmae.finetune.speaker.prediction import SpeakerPredictor, check_finite_audio
from cavmae.finetune.speaker.voice_matching import distances


@dataclasses.dataclass(frozen=True)
class Cue:
    """Cue for the target person.

    Attributes:
        kind: ``box``, ``point``, ``mask`` or ``voice``.
        time: time of the frame of a box, point or mask, in seconds.
        box: fractions of the frame; a point is a box without size, a mask has its bounding box.
        mask: bool [h, w], of the whole frame, for masks.
        voice: float32 [samples] at 16 kHz, for voices.
    """

    kind: CueKind
    time: float = 0.0
    box: Box = WHOLE
    mask: np.ndarray | None = None
    voice: np.ndarray | None = None


class PreparedMixture(NamedTuple):
    """A mixture, ready for several predictions.

    Attributes:
        wave: float32 [1, S].
        fbank: [1, S / 160, mel], normalised.
        encoding: of both.
    """

    wave: Tensor
    fbank: Tensor
    encoding: MixtureEncoding


class DetectedPerson(NamedTuple):
    """A person in a window.

    Attributes:
        slot: index of the slot; of merged slots the one with the highest presence probability, or
            that of a cue.
        presence_prob: probability that the slot holds a person.
        activity_prob: float32 [T], probability that the voice is active, every 40 ms.
        box: region of the frame that the masks cover.
        masks: uint8 [F, h, w], 0 to 255, of the key frames.
        voice: float32 [samples].
        colors: of :func:`~cavmae.finetune.inference.appearance.appearance`, in the key frames.
        openings: float32 [T], opening of the mouth in each frame, about 0 to 1.
    """

    slot: int
    presence_prob: float
    activity_prob: np.ndarray
    box: Box
    masks: np.ndarray
    voice: np.ndarray
    colors: np.ndarray
    openings: np.ndarray


@dataclasses.dataclass(frozen=True)
class Letterbox:
    """Placement of a region of the frame in the input of the model, with black bars.

    Attributes:
        part: top, left, height and width of the region in pixels of the frame.
        inner: top, left, height and width of the region in mask pixels of the input.
        size: (height, width) of the input in mask pixels.
    """

    part: tuple[int, int, int, int]
    inner: tuple[int, int, int, int]
    size: tuple[int, int]

    @classmethod
    def of(cls, box: Box, frame_size: tuple[int, int], model_size: tuple[int, int]) -> "Letterbox":
        """Place a box of the frame.

        Args:
            box: region of the frame.
            frame_size: (height, width) of the frame in pixels.
            model_size: (height, width) of the input of the model in pixels.
        """
        left, right = round(box[0] * frame_size[1]), round(box[2] * frame_size[1])
        top, bottom = round(box[1] * frame_size[0]), round(box[3] * frame_size[0])
        height, width = max(1, bottom - top), max(1, right - left)
        size = model_size[0] // MASK_STRIDE, model_size[1] // MASK_STRIDE
        scale = min(size[0] / height, size[1] / width)
        inner = max(1, round(height * scale)), max(1, round(width * scale))
        place = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
        return cls((top, left, height, width), (*place, *inner), size)

    def crop(self, frames: Tensor) -> Tensor:
        """Crop frames [N, C, h, w] to the region."""
        top, left, height, width = self.part
        return frames[:, :, top : top + height, left : left + width]

    def resize(self, frames: Tensor, size: tuple[int, int]) -> Tensor:
        """Letterbox frames uint8 [N, C, h, w] to uint8 [N, C, *size]; the bars are black."""
        first, last, across, beyond = (
            round(v * size[axis] / self.size[axis])
            for v, axis in (
                (self.inner[0], 0), (self.inner[0] + self.inner[2], 0),
                (self.inner[1], 1), (self.inner[1] + self.inner[3], 1),
            )
        )  # fmt: skip
        resized = torch.zeros(*frames.shape[:2], *size, dtype=torch.uint8)
        resized[:, :, first:last, across:beyond] = functional.interpolate(
            self.crop(frames), (last - first, beyond - across), mode="bilinear", antialias=True
        )
        return resized

    def crop_masks(self, masks: Tensor) -> Tensor:
        """Crop masks [..., *size] of the input to the region."""
        top, left, height, width = self.inner
        return masks[..., top : top + height, left : left + width]

    def map_votes(self, votes: Tensor) -> Tensor:
        """Map votes [2, F, *size] (x, y) from fractions of the input to those of the region."""
        top, left, height, width = self.inner
        across = (self.crop_masks(votes[0]) * self.size[1] - left) / width
        down = (self.crop_masks(votes[1]) * self.size[0] - top) / height
        return torch.stack([across, down])

    def map_box(self, box: Box, frame_size: tuple[int, int]) -> Box:
        """Map a box of the frame to fractions of the input, clipped to the region."""
        top, left, height, width = self.part
        edges = []
        for value, side, begin, extent, axis in (
            (box[0], frame_size[1], left, width, 1), (box[1], frame_size[0], top, height, 0),
            (box[2], frame_size[1], left, width, 1), (box[3], frame_size[0], top, height, 0),
        ):  # fmt: skip
            fraction = min(1.0, max(0.0, (value * side - begin) / extent))
            place, inner = self.inner[axis], self.inner[2 + axis]
            edges.append((place + fraction * inner) / self.size[axis])
        return edges[0], edges[1], edges[2], edges[3]


class WindowPredictor:
    """Speaker model for single windows.

    Args:
        model: already on its device.
        statistics: mean and standard deviation for the normalization of fbanks.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        thresholds: of slots and masks.
    """

    def __init__(
        self,
        model: SpeakerModel,
        statistics: Statistics,
        precision: str = "fp32",
        thresholds: Thresholds = Thresholds(),  # noqa: B008 - frozen
    ):
        self.speaker = SpeakerPredictor(model.eval(), statistics)
        self.config = model.config
        self.thresholds = thresholds
        self.device = next(model.parameters()).device
        self.num_weights = sum(p.numel() for p in model.parameters())
        self._type = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
        self.keys = (
            (np.arange(self.config.key_frames) + 0.5) * self.config.frames / self.config.key_frames
        )
        self.keys = self.keys.astype(np.int64)

    @torch.no_grad()
    def prepare(self, mixture: np.ndarray) -> PreparedMixture:
        """Encode a mixture, float32 [S], which all looks at a window share.

        Raises:
            CavmaeError: it has NaN or Inf.
        """
        wave = torch.from_numpy(mixture)[None].to(self.device)
        check_finite_audio(wave)
        fbank = self.speaker.fbank(wave)
        with self._autocast():
            return PreparedMixture(wave, fbank, self.speaker.model.encode_mixture(wave, fbank))

    @torch.no_grad()
    def predict(
        self,
        frames: Sequence[np.ndarray],
        mixture: PreparedMixture,
        box: Box = WHOLE,
        cue: Cue | None = None,
        key: int = 0,
        hint: int = 0,
        motion: Tensor | None = None,
        tokens: Tensor | None = None,
    ) -> list[DetectedPerson]:
        """Predict the people of a window, by descending presence probability.

        Voices have the level of the mixture.

        Args:
            frames: uint8 [h, w, 3] each, T of them.
            mixture: of :meth:`prepare`.
            box: region of the frames that the model sees.
            cue: cue for the person of slot 0.
            key: index of the key frame of a box, point or mask.
            hint: class number of :meth:`class_number`.
            motion: of :meth:`motion`, of these frames and this box; None: it is made.
            tokens: [1, F, L, E], of :meth:`encode_frames`, of the key frames, whole; None: they are
                computed.

        Raises:
            NonFiniteError: the model gives NaN or Inf.
        """
        frame_size = frames[0].shape[0], frames[0].shape[1]
        letterbox = Letterbox.of(box, frame_size, self._image)
        keys_nchw = _nchw([frames[key] for key in self.keys])
        key_frames = letterbox.resize(keys_nchw, self._image)
        motion = self.motion(frames, box) if motion is None else motion
        inputs = Inputs(
            mixture=mixture.wave,
            fbank=mixture.fbank,
            frames=key_frames.permute(0, 2, 3, 1)[None].to(self.device),
            motion=motion[None].to(self.device),
            cues=self._cues(cue, key, letterbox, frame_size),
            hint=torch.tensor([hint], device=self.device),
            encoding=mixture.encoding,
            frame_tokens=tokens,
        )
        with self._autocast():
            slot_predictions, voice_predictions = self.speaker.predict(
                inputs, self.thresholds.min_voice_prob
            )
        states = voice_predictions.states[0, :-1].float().softmax(-1).cpu()
        masks = letterbox.crop_masks(slot_predictions.masks[-1][0].float().sigmoid()).cpu()
        waves = voice_predictions.waves(mixture.wave.shape[1])[0].float().cpu().numpy()
        key_colors = functional.interpolate(
            letterbox.crop(keys_nchw), masks.shape[-2:], mode="bilinear", antialias=True
        ).numpy()
        activity_prob = voice_predictions.activity_logits[0].float().sigmoid().cpu()
        openings = voice_predictions.articulation[0, :, :, OPENING].float().cpu().numpy()
        votes = letterbox.map_votes(slot_predictions.votes[0].float()).cpu()
        presence_prob = 1 - states[:, NONE] - states[:, OFF_SCREEN]
        groups = merge_slots(masks, votes, presence_prob, cue is not None, self.thresholds)
        if not groups:
            return []
        merged = torch.stack([masks[slots].amax(0) for slots in groups])
        people = []
        for slots, person_masks in zip(
            groups, without_copies(merged, votes, self.thresholds), strict=True
        ):
            person_masks = without_specks(person_masks, votes, self.thresholds)
            people.append(
                DetectedPerson(
                    slot=slots[0],
                    presence_prob=float(presence_prob[slots[0]]),
                    activity_prob=activity_prob[slots[0]].numpy(),
                    box=box,
                    masks=(person_masks * 255).round().byte().numpy(),
                    # Voices add up to the mixture, so the voices of merged slots are summed.
                    voice=waves[slots].sum(0),
                    colors=appearance(key_colors, person_masks.numpy()),
                    openings=openings[slots[0]],
                )
            )
        return people

    @torch.no_grad()
    def encode_frames(self, frames: Sequence[np.ndarray]) -> Tensor:
        """Tokens [N, L, E] of whole frames, uint8 [h, w, 3] each, for an encoder of single frames.

        They are those of :meth:`SpeakerModel.encode_frames`.
        """
        letterbox = Letterbox.of(WHOLE, (frames[0].shape[0], frames[0].shape[1]), self._image)
        small = letterbox.resize(_nchw(frames), self._image).permute(0, 2, 3, 1)
        with self._autocast():
            tokens: Tensor = self.speaker.model.encode_frames(small[None].to(self.device))[0]
        return tokens

    def motion(self, frames: Sequence[np.ndarray], box: Box = WHOLE) -> Tensor:
        """Grey frames of a region for the motion pathway: uint8 [N, h', w'].

        Args:
            frames: uint8 [h, w, 3] each, N of them.
            box: region of the frames.
        """
        parts = [torch.empty(0, *self.config.motion_size, dtype=torch.uint8)]
        for frame in frames:  # one at a time: all of a window would be copied for nothing
            letterbox = Letterbox.of(box, (frame.shape[0], frame.shape[1]), self._image)
            resized = letterbox.resize(_nchw([frame]), self.config.motion_size).float()
            parts.append((resized * torch.tensor(GREY)[:, None, None]).sum(1).round_().byte())
        return torch.cat(parts)

    def class_number(self, name: str | None) -> int:
        """Number of a class, from 1; 0 for None.

        Raises:
            UsageError: the model has no such class.
        """
        classes = self.config.classes
        if name is None:
            return 0
        if name not in classes:
            existing = f"it has {', '.join(classes)}" if classes else "it has none; leave it out"
            raise UsageError(f"--hint {name}: the model has no such class; {existing}.")
        return classes.index(name) + 1

    @torch.no_grad()
    def voice_distance(self, voice: np.ndarray, reference: np.ndarray) -> float:
        """Distance between a voice and a reference recording, float32 [S] of any lengths."""
        fbanks = [
            self.speaker.fbank(torch.from_numpy(wave)[None].to(self.device))
            for wave in (voice, reference)
        ]
        return float(distances(fbanks[0][None], fbanks[1]))

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self._type, enabled=self._type is not None)

    @property
    def _image(self) -> tuple[int, int]:
        height, width = self.config.encoder.image_size
        return height, width

    def _cues(
        self, cue: Cue | None, key: int, letterbox: Letterbox, frame_size: tuple[int, int]
    ) -> Cues:
        grid = self.config.encoder.image_grid
        bins, steps = self.config.encoder.audio_size
        cues = no_cues(1, grid, (steps, bins), self.device)
        if cue is None:
            return cues
        kind = torch.tensor([KINDS.index(cue.kind)], device=self.device)
        if cue.kind == "voice":
            assert cue.voice is not None
            wave = torch.from_numpy(cue.voice)[None].to(self.device)
            return cues._replace(kind=kind, voice=self.speaker.fbank(wave))
        box = torch.tensor([letterbox.map_box(cue.box, frame_size)], device=self.device)
        region = region_of(box, grid)
        if cue.mask is not None:
            mask_nchw = torch.from_numpy(cue.mask.astype(np.uint8) * 255)[None, None]
            mask_nchw = functional.interpolate(mask_nchw, frame_size, mode="nearest")
            mask_nchw = letterbox.resize(mask_nchw, self._image).float().to(self.device) / 255
            region = functional.adaptive_avg_pool2d(mask_nchw, grid)[:, 0]
        frame = torch.tensor([key], device=self.device)
        return cues._replace(kind=kind, frame=frame, box=box, region=region)


def _nchw(frames: Sequence[np.ndarray]) -> Tensor:
    """Frames uint8 [h, w, 3] as a batch [N, 3, h, w]; of a single one no copy is taken."""
    if len(frames) == 1:
        return torch.from_numpy(frames[0])[None].permute(0, 3, 1, 2)
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)
