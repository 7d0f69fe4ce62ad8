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
from cavmae.datasets.stream.transforms import Statistics
from cavmae.datasets.synthetic.articulation import OPENING
from cavmae.finetune.inference.appearance import appearance
from cavmae.finetune.inference.detections import DetectedPerson
from cavmae.finetune.inference.settings import Thresholds
from cavmae.finetune.inference.slot_merging import (
    join_slots,
    merge_slots,
    without_copies,
    without_specks,
)
from cavmae.finetune.inference.views import KeyView, Letterbox, ViewSizes, WindowView
from cavmae.finetune.speaker.cues import KINDS, CueKind, Cues, no_cues, region_of
from cavmae.finetune.speaker.model import SpeakerModel
from cavmae.finetune.speaker.model_tensors import (
    NONE,
    OFF_SCREEN,
    Inputs,
    MixtureEncoding,
    SlotPredictions,
)
from cavmae.finetune.speaker.prediction import SpeakerPredictor, check_finite_audio
from cavmae.finetune.speaker.voice_matching import distances

LARGE_WEIGHTS = 50_000_000  # `small` has 17 million, `base` 208


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


class _MergedSlots(NamedTuple):
    """People among the slots of a window.

    Attributes:
        masks: [Q', F, h, w], 0 to 1, of the frame.
        votes: [2, F, h, w], center votes (x, y) as fractions of the frame.
        presence_prob: [Q'].
        groups: slots of each person, of :func:`merge_slots`.
    """

    masks: Tensor
    votes: Tensor
    presence_prob: Tensor
    groups: list[list[int]]


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
        self.config = model.config
        self.thresholds = thresholds
        self.device = next(model.parameters()).device
        self.num_weights = sum(p.numel() for p in model.parameters())
        returns_memory = self.device.type == "cpu" and self.is_large
        self.speaker = SpeakerPredictor(model.eval(), statistics, returns_memory)
        self._type = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
        self.keys = (
            (np.arange(self.config.key_frames) + 0.5) * self.config.frames / self.config.key_frames
        )
        self.keys = self.keys.astype(np.int64)
        height, width = self.config.encoder.image_size
        self.sizes = ViewSizes((height, width), self.config.motion_size)

    @property
    def is_large(self) -> bool:
        """Whether it has more weights than :data:`LARGE_WEIGHTS`."""
        return self.num_weights > LARGE_WEIGHTS

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
            encoding = self.speaker.model.encode_mixture(wave, fbank)
        self.speaker.end_step()
        return PreparedMixture(wave, fbank, encoding)

    @torch.no_grad()
    def predict(
        self,
        view: WindowView,
        mixture: PreparedMixture,
        cue: Cue | None = None,
        key: int = 0,
        hint: int = 0,
        tokens: Tensor | None = None,
    ) -> list[DetectedPerson]:
        """Predict the people of a window, by descending presence probability.

        Voices have the level of the mixture.

        Args:
            view: of the window.
            mixture: of :meth:`prepare`.
            cue: cue for the person of slot 0.
            key: index of the key frame of a box, point or mask.
            hint: class number of :meth:`class_number`.
            tokens: [1, F, L, E], of :meth:`encode_key_views`, of those of the view; None: they are
                computed.

        Raises:
            NonFiniteError: the model gives NaN or Inf.
        """
        letterbox = self.sizes.letterbox(view.box, view.frame_size)
        images = torch.stack([key_view.image for key_view in view.key_views])
        inputs = Inputs(
            mixture=mixture.wave,
            fbank=mixture.fbank,
            frames=images.permute(0, 2, 3, 1)[None].to(self.device),
            motion=view.motion[None].to(self.device),
            cues=self._cues(cue, key, letterbox, view.frame_size),
            hint=torch.tensor([hint], device=self.device),
            encoding=mixture.encoding,
            frame_tokens=tokens,
        )
        with self._autocast():
            slot_predictions = self.speaker.predict_masks(inputs)
            # A person has one slot from here on: the lips of a trunk of its own say nothing.
            # The target of a voice is in slot 0 only after voices are compared.
            has_place = cue is not None and cue.kind != "voice"
            parts = self._merge(slot_predictions, slot_predictions.states[-1], letterbox, has_place)
            slot_predictions, voice_predictions = self.speaker.predict_voices(
                inputs, join_slots(slot_predictions, parts.groups, parts.presence_prob),
                self.thresholds.min_voice_prob,
            )  # fmt: skip
        # Motion and audio refine states, so that a further slot may be a person.
        merging = self._merge(
            slot_predictions, voice_predictions.states, letterbox, cue is not None
        )
        waves = voice_predictions.waves(mixture.wave.shape[1])[0].float().cpu().numpy()
        key_colors = torch.stack([key_view.colors for key_view in view.key_views]).numpy()
        activity_prob = voice_predictions.activity_logits[0].float().sigmoid().cpu()
        openings = voice_predictions.articulation[0, :, :, OPENING].float().cpu().numpy()
        masks, votes, presence_prob, groups = merging
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
                    box=view.box,
                    masks=(person_masks * 255).round().byte().numpy(),
                    # Voices add up to the mixture, so the voices of merged slots are summed.
                    voice=waves[slots].sum(0),
                    colors=appearance(key_colors, person_masks.numpy()),
                    openings=openings[slots[0]],
                )
            )
        return people

    def _merge(
        self, predictions: SlotPredictions, states: Tensor, letterbox: Letterbox, is_cued: bool
    ) -> _MergedSlots:
        """People among the slots of a window, by states [1, Q, 4]."""
        masks = letterbox.crop_masks(predictions.masks[-1][0].float().sigmoid()).cpu()
        votes = letterbox.map_votes(predictions.votes[0].float()).cpu()
        probs = states[0, :-1].float().softmax(-1).cpu()
        presence_prob = 1 - probs[:, NONE] - probs[:, OFF_SCREEN]
        groups = merge_slots(masks, votes, presence_prob, is_cued, self.thresholds)
        return _MergedSlots(masks, votes, presence_prob, groups)

    @torch.no_grad()
    def encode_key_views(self, key_views: Sequence[KeyView]) -> Tensor:
        """Tokens [N, L, E] of whole key frames, N of them, for an encoder of single frames.

        They are those of :meth:`SpeakerModel.encode_frames`.
        """
        images = torch.stack([key_view.image for key_view in key_views]).permute(0, 2, 3, 1)
        with self._autocast():
            tokens: Tensor = self.speaker.model.encode_frames(images[None].to(self.device))[0]
        self.speaker.end_step()
        return tokens

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
            mask_nchw = letterbox.resize(mask_nchw, self.sizes.image).float().to(self.device) / 255
            region = functional.adaptive_avg_pool2d(mask_nchw, grid)[:, 0]
        frame = torch.tensor([key], device=self.device)
        return cues._replace(kind=kind, frame=frame, box=box, region=region)
