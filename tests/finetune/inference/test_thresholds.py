"""Thresholds of inference: ranges, and the effect on speech."""

import dataclasses
import math

import numpy as np
import pytest

from cavmae.common.errors import UsageError
from cavmae.finetune.inference.audio import spans_of, speech_spans
from cavmae.finetune.inference.settings import Thresholds


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Thresholds)])
def test_every_threshold_is_checked(name: str) -> None:
    option = f"--thresholds.{name.replace('_', '-')}"
    for value in (math.nan, math.inf, 1.0 if name.endswith("_db") else -0.1):
        with pytest.raises(UsageError, match=option):
            Thresholds(**{name: value})


def test_fractions_end_at_1() -> None:
    Thresholds(min_slot_iou=1.0, max_absence=1e4, min_track_score=1.4)
    for name in ("min_presence_prob", "min_area_fraction", "min_slot_iou", "min_color_similarity"):
        with pytest.raises(UsageError, match="is above 1: give a fraction from 0 to 1"):
            Thresholds(**{name: 1.1})


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, [(0.4, 0.8), (1.2, 2.0)]),
        ({"max_pause": 0.4}, [(0.4, 2.0)]),
        ({"min_span": 0.5}, [(1.2, 2.0)]),
        ({"min_activity_prob": 0.9}, [(1.2, 2.0)]),
        ({"min_voice_db": -5.0}, [(1.2, 2.0)]),
        ({"min_mixture_db": -25.0}, [(1.2, 2.0)]),
        ({"min_level_db": -25.0}, [(1.2, 2.0)]),
    ],
)
def test_each_threshold_of_speech_has_an_effect(
    change: dict[str, float], expected: list[tuple[float, float]]
) -> None:
    """A faint, uncertain span, a pause of 0.4 s, and a loud one."""
    voice, prob = np.full(100, -90, np.float32), np.zeros(100, np.float32)
    voice[10:20], prob[10:20] = -30, 0.8
    voice[30:50], prob[30:50] = -20, 1.0
    mixture = np.full(100, 0, np.float32)
    thresholds = Thresholds(**change)
    assert speech_spans(voice, mixture, prob, thresholds) == expected
    assert spans_of(prob > 0.9, thresholds) == [(1.2, 2.0)]
