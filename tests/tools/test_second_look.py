"""Second look at people who are small in the frame."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from cavmae.common.boxes import WHOLE, Box
from cavmae.finetune.inference.detections import DetectedPerson, Movement
from cavmae.finetune.inference.predictor import Cue, PreparedMixture, WindowPredictor
from cavmae.finetune.inference.second_look import (
    is_same_person,
    refine_people,
    second_looks,
    zoom_box,
)
from cavmae.finetune.inference.separator import Separator
from cavmae.finetune.inference.settings import SeparateSettings, Thresholds
from cavmae.finetune.inference.views import WindowView

Maker = Callable[..., Path]


class Obedient(WindowPredictor):
    """Returns the mask of the cue, as a trained model does, and records hints."""

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.hints: set[int] = set()

    def predict(
        self, view: WindowView, mixture: PreparedMixture, cue: Cue | None = None, key: int = 0,
        hint: int = 0, tokens: torch.Tensor | None = None,
    ) -> list[DetectedPerson]:  # fmt: skip
        self.hints.add(hint)
        box = view.box
        people = super().predict(view, mixture, cue, key, hint, tokens)
        if cue is None or cue.mask is None:
            return people
        mask = torch.from_numpy(cue.mask.astype(np.float32))[None, None]
        across = torch.linspace(2 * box[0] - 1, 2 * box[2] - 1, 48)
        down = torch.linspace(2 * box[1] - 1, 2 * box[3] - 1, 48)
        grid = torch.stack(torch.meshgrid(across, down, indexing="xy"), -1)[None]
        sampled = torch.nn.functional.grid_sample(mask, grid, "nearest", align_corners=False)
        masks = (sampled[0].expand(len(self.keys), -1, -1) * 255).byte().numpy()
        return [people[0]._replace(slot=0, box=box, masks=masks), *people[1:]]


def test_small_people_get_a_second_look(checkpoint: str, video: Maker, tmp_path: Path) -> None:
    speaker = Separator.from_pretrained(checkpoint, "cpu")._predictor.speaker
    speaker.model.add_classes(("child", "adult"))
    separator = Separator(Obedient(speaker.model, speaker.statistics), checkpoint, "fp32")
    with torch.no_grad():
        speaker.model.center_voting.gaussian_head.bias[2:] = -1.5  # all masks are small
    path = video(seconds=1.0, size=(240, 160))
    settings = SeparateSettings(overlay=False, masks=False, hint="adult")
    result = separator.separate(str(path), tmp_path / "out", settings)
    assert separator._predictor.hints == {2}  # type: ignore[attr-defined]
    second_looks = [record for p in result.record["people"] for record in p["second_look"]]
    plain = separator.separate(
        str(path), tmp_path / "plain", SeparateSettings(False, overlay=False, masks=False)
    )
    assert not any(p["second_look"] for p in plain.record["people"])
    assert second_looks
    assert all(record["zoom"] >= 1.5 for record in second_looks)
    predictor = Obedient(
        speaker.model, speaker.statistics, thresholds=Thresholds(max_frame_side=120)
    )
    assert Separator(predictor, checkpoint, "fp32")._working_size((160, 240), settings) == (80, 120)


@pytest.mark.parametrize(
    ("change", "zoom"),
    [
        ({}, 50 / 7),
        ({"min_zoom": 7.2}, None),
        ({"min_second_look_iou": 0.6}, None),
        ({"zoom_margin_fraction": 1.0}, 10 / 3),
    ],
)
def test_each_threshold_of_second_looks_has_an_effect(
    change: dict[str, float], zoom: float | None
) -> None:
    """A person of a tenth of the frame, whose masks have an IoU of a half in the second look."""

    class Model:
        keys, thresholds = np.array([2, 6]), Thresholds(**change)  # type: ignore[arg-type]
        sizes = SimpleNamespace(image=(100, 100))

    masks = np.zeros((2, 100, 100), dtype=np.uint8)
    masks[:, 45:55, 45:55] = 255
    activity_prob, voice, colors = (np.zeros(n, np.float32) for n in (8, 9, 64))
    person = DetectedPerson(0, 0.9, activity_prob, WHOLE, masks, voice, colors, activity_prob)
    halved = person._replace(masks=masks.copy())
    person = person._replace(movement=Movement(0.01, 0.02))
    halved.masks[:, :50] = 0
    predictor = cast(WindowPredictor, Model())
    looks = second_looks(predictor, (1000, 1000), [person])
    (refined,), zooms = refine_people(predictor, [person], looks, [[halved]] * len(looks))
    assert zooms == ({} if zoom is None else {0: pytest.approx(zoom)})
    assert refined.masks is (person.masks if zoom is None else halved.masks)
    assert refined.movement == person.movement  # which is measured in whole frames


def test_a_second_look_at_another_person_is_discarded() -> None:
    keys = np.array([2, 6])

    def detection(slot: int, left: float, box: Box = (0.0, 0.0, 1.0, 1.0)) -> DetectedPerson:
        masks = np.zeros((2, 96, 96), dtype=np.uint8)
        start, stop = (round((v - box[0]) / (box[2] - box[0]) * 96) for v in (left, left + 0.15))
        masks[:, 30:70, max(0, start) : max(0, stop)] = 255
        activity_prob, voice, colors = (np.zeros(n, np.float32) for n in (8, 9, 64))
        return DetectedPerson(slot, 0.9, activity_prob, box, masks, voice, colors, activity_prob)

    first, second = detection(0, 0.3), detection(1, 0.5)
    close = (0.25, 0.0, 0.75, 1.0)
    assert is_same_person(detection(0, 0.31, close), first, [first, second], keys, 0.25)
    neighbor, stranger = detection(0, 0.5, close), detection(0, 0.65, close)
    assert not is_same_person(neighbor, first, [first, second], keys, 0.25)
    assert not is_same_person(stranger, first, [first], keys, 0.25)


def test_a_close_up_holds_the_person_and_stays_in_the_picture() -> None:
    masks = np.zeros((4, 40, 80), dtype=np.uint8)
    masks[:, 30:38, 2:6] = 255
    box, zoom = zoom_box(masks, (400, 800), (224, 224), 0.2)
    left, top, right, bottom = box
    assert left == 0
    assert right > 6 / 80
    assert top < 30 / 40
    assert bottom == pytest.approx(1)
    scale = 224 / ((bottom - top) * 400)
    assert zoom == pytest.approx(scale / (224 / 800))
    assert (right - left) * 800 == pytest.approx((bottom - top) * 400)  # as the model sees
    assert scale <= 1.001  # no closer than there are pixels
    whole, full_zoom = zoom_box(np.full((4, 40, 80), 255, np.uint8), (400, 800), (224, 224), 0.2)
    assert whole == pytest.approx((0, 0, 1, 1))
    assert full_zoom == pytest.approx(1)
