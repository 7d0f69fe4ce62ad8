"""A separator whose model is the truth: what is left are the faults of tracking."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from cavmae.common.boxes import WHOLE
from cavmae.datasets.footage.composer import SAMPLES
from cavmae.datasets.footage.spec import FootageSpec
from cavmae.datasets.footage.truth import FootageTruth
from cavmae.datasets.stream.transforms import Statistics
from cavmae.finetune.inference.appearance import appearance
from cavmae.finetune.inference.detections import DetectedPerson
from cavmae.finetune.inference.overlap_add import window_starts
from cavmae.finetune.inference.predictor import Cue, PreparedMixture, WindowPredictor
from cavmae.finetune.inference.separator import Separator
from cavmae.finetune.inference.settings import SeparateSettings, Thresholds
from cavmae.finetune.inference.shots import visible_keys
from cavmae.finetune.inference.views import WindowView
from tests.finetune.speaker.scenes import ENCODER, model

Slots = Literal["person", "split", "place"]
SETTINGS = SeparateSettings(second_look=False, min_seconds=0.0)


class OraclePredictor(WindowPredictor):
    """Gives the true people of consecutive windows; every frame is a key frame.

    Args:
        spec, truth: of the recording.
        slots: what a slot holds over a cut: the same ``person``; nobody after it (``split``), so
            that a person before a cut and after it are two detections; or whoever is at the same
            ``place`` from left to right.
        thresholds: of tracks.
    """

    def __init__(
        self, spec: FootageSpec, truth: FootageTruth, slots: Slots, thresholds: Thresholds
    ):
        encoder = dataclasses.replace(ENCODER, image_height=80, image_width=128)
        small_model = model(encoder=encoder, key_frames=16)
        super().__init__(small_model, Statistics(), thresholds=thresholds)
        self.truth = truth
        length = self.config.frames
        self.starts = iter(window_starts(spec.frames, length, round(SETTINGS.hop * length)))
        cuts = np.cumsum([shot.frames for shot in spec.shots])
        self.shot = np.searchsorted(cuts, np.arange(spec.frames + length), side="right")
        if slots == "person":
            self.shot[:] = 0
        self.slots = slots

    def predict(
        self, view: WindowView, mixture: PreparedMixture, cue: Cue | None = None, key: int = 0,
        hint: int = 0, tokens: Tensor | None = None,
    ) -> list[DetectedPerson]:  # fmt: skip
        start, length = next(self.starts), len(view.motion)
        numbers = start + np.arange(length)
        owner = self.truth.people[numbers.clip(max=len(self.truth.people) - 1)]
        shots = self.shot[numbers]
        images = torch.stack([key_view.image for key_view in view.key_views])
        pixels = functional.interpolate(images, owner.shape[1:], mode="nearest")
        people = []
        for person, whole_voice in enumerate(self.truth.voices, 1):
            voice = np.zeros(length * SAMPLES, dtype=np.float32)
            part = whole_voice[start * SAMPLES :][: len(voice)]
            voice[: len(part)] = part
            for shot in np.unique(shots):
                masks = (owner == person) & (shots == shot)[:, None, None]
                if masks.mean() < self.thresholds.min_area_fraction:
                    continue
                colors = appearance(pixels.numpy(), masks.astype(np.float32))
                people.append(
                    DetectedPerson(
                        len(people), 0.9, np.ones(length, np.float32), WHOLE,
                        masks * np.uint8(255), voice * np.repeat(shots == shot, SAMPLES), colors,
                        np.zeros(length, np.float32),
                    )
                )  # fmt: skip
        return people if self.slots != "place" else joined_by_place(people)


def joined_by_place(people: Sequence[DetectedPerson]) -> list[DetectedPerson]:
    """Slots that hold the first, second, ... person from the left of each shot."""
    by_shot: dict[tuple[bool, ...], list[DetectedPerson]] = {}
    for person in people:
        by_shot.setdefault(tuple(visible_keys(person)), []).append(person)
    for shot in by_shot.values():
        shot.sort(key=lambda p: float(np.nonzero(p.masks)[2].mean()))
    slots = []
    for number, parts in enumerate(itertools.zip_longest(*by_shot.values())):
        own = [part for part in parts if part is not None]
        slots.append(
            own[0]._replace(
                slot=number,
                masks=np.maximum.reduce([part.masks for part in own]),
                voice=np.sum([part.voice for part in own], axis=0),
                colors=np.sum([part.colors for part in own], axis=0),
            )
        )
    return slots


def oracle_separator(
    spec: FootageSpec, truth: FootageTruth, slots: Slots = "person", **thresholds: float
) -> Separator:
    """Separator of one recording, once."""
    wanted = dataclasses.replace(Thresholds(), **thresholds)  # type: ignore[arg-type]
    return Separator(OraclePredictor(spec, truth, slots, wanted), "oracle", "fp32")
