"""Whole recordings by the path of `cavmae separate`, with the truth in the place of the model."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from cavmae.common.errors import CavmaeError
from cavmae.datasets.footage.rendering import LIST, make_footage, truth_path, video_path
from cavmae.datasets.footage.spec import FootageSpec, read_footage_list
from cavmae.datasets.footage.truth import FootageTruth
from cavmae.datasets.stream.rates import VIDEO_RATE
from cavmae.finetune.tracking.evaluation import (
    RecordingTracks,
    evaluate_recording,
    kind_summaries,
    track_summary,
)
from tests.datasets.footage.clips import SHORT, talkers_of
from tests.finetune.tracking.oracle import SETTINGS, Slots, oracle_separator


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording of each kind."""
    folder = tmp_path_factory.mktemp("tracks")
    shards = talkers_of(folder / "set").folder
    make_footage(shards, folder / "footage", SHORT)
    return folder / "footage"


def loaded(footage: Path, *kinds: str) -> list[tuple[FootageSpec, FootageTruth]]:
    return [
        (spec, FootageTruth.load(truth_path(footage, spec.name)))
        for spec in read_footage_list(footage / LIST)[1]
        if spec.kind in kinds
    ]


def measured(
    footage: Path, spec: FootageSpec, truth: FootageTruth, slots: Slots = "person",
    **thresholds: float,
) -> RecordingTracks:  # fmt: skip
    separator = oracle_separator(spec, truth, slots, **thresholds)
    return evaluate_recording(separator, video_path(footage, spec.name), truth, SETTINGS)


@pytest.mark.parametrize("slots", ["person", "split", "place"])
def test_the_truth_is_perfect(footage: Path, slots: Slots) -> None:
    """Also if the slots do not follow anybody over a cut: clothes of five colors do."""
    whole = slots == "person"
    kinds = ("plain", "return", "cut", "inset", "portrait") if whole else ("cut", "inset")
    results: dict[str, list[RecordingTracks]] = {}
    for spec, truth in loaded(footage, *kinds):
        result = measured(footage, spec, truth, slots)
        results.setdefault(spec.kind, []).append(result)
        counts = result.counts
        # Crossfaded windows hide a person for some frames after they enter.
        assert counts.idf1 == pytest.approx(1.0, abs=0.01), spec.name
        assert (counts.switches, counts.tracks) == (0, counts.people), spec.name
        for voice in result.voices:
            assert voice.speaks
            assert voice.track is not None
            assert voice.si_sdri is None or voice.si_sdri > 5
    summaries = kind_summaries(results)
    assert list(summaries) == ["all", *kinds]
    assert summaries["all"]["iou"] > 0.99
    assert "si_sdri" in summaries["cut"]


def test_a_new_number_for_each_shot(footage: Path) -> None:
    """Each person's track is that of their longest stay, and all other stays are of no use."""
    for spec, truth in loaded(footage, "cut"):
        result = measured(footage, spec, truth, slots="split", min_color_similarity=1.0)
        cuts = np.cumsum([0, *(shot.frames for shot in spec.shots)])
        stays = np.array(
            [
                [
                    (truth.people[first:last] == n + 1).any((1, 2)).sum()
                    for n in range(len(truth.voices))
                ]
                for first, last in itertools.pairwise(cuts)
            ]
        )
        assert result.counts.tracks == (stays > 0).sum() > result.counts.people
        expected = stays.max(0).sum() / stays.sum()
        assert result.counts.idf1 == pytest.approx(expected, abs=0.02)
        assert result.counts.idf1 < 0.9
        assert result.counts.switches == (stays > 0).sum() - len(truth.voices)


def test_who_returns_too_late_is_another_person(footage: Path) -> None:
    for spec, truth in loaded(footage, "return"):
        result = measured(footage, spec, truth, max_absence=0.1)
        assert result.counts.tracks == 3
        assert result.counts.switches == 1
        visible = (truth.people == 2).any((1, 2))
        away = round((spec.talkers[1].active[0][1] + 0.2) * VIDEO_RATE)
        lost = min(visible[:away].sum(), visible[away:].sum())
        frames = result.counts.person_frames
        assert result.counts.idf1 == pytest.approx(1 - lost / frames, abs=0.02)


def test_silent_people_and_missing_ones(footage: Path) -> None:
    (spec, truth), *_ = loaded(footage, "plain")
    voices = truth.voices.copy()
    voices[1] = 0
    silent = measured(footage, spec, FootageTruth(truth.people, voices))
    first, second = silent.voices
    assert first.speaks
    assert not second.speaks
    assert second.si_sdri is None
    assert second.level_db is not None
    assert second.level_db < -60
    alone = FootageTruth(np.where(truth.people == 1, 1, 0).astype(np.uint8), truth.voices)
    separator = oracle_separator(spec, alone)
    result = evaluate_recording(separator, video_path(footage, spec.name), truth, SETTINGS)
    assert [voice.track for voice in result.voices] == [1, None]
    assert track_summary([result])["people_without_track"] == 1
    assert result.counts.missed_frames == (truth.people == 2).any((1, 2)).sum()


def test_a_truth_of_another_recording_is_refused(footage: Path) -> None:
    (_, truth), *_ = loaded(footage, "plain")
    (other, own_truth), *_ = loaded(footage, "portrait")
    separator = oracle_separator(other, own_truth)
    with pytest.raises(CavmaeError, match="does not belong to this truth"):
        evaluate_recording(separator, video_path(footage, other.name), truth, SETTINGS)
