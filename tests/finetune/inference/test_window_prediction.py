"""Two windows at a time on the CPU: the same people in the same order, and nothing left behind."""

import contextlib
import dataclasses
import threading
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cavmae.datasets.media import MediaError
from cavmae.finetune.inference.detections import DetectedPerson
from cavmae.finetune.inference.first_pass import FirstPass, first_pass
from cavmae.finetune.inference.predictor import WindowPredictor
from cavmae.finetune.inference.progress import ignore_progress
from cavmae.finetune.inference.settings import Thresholds
from cavmae.finetune.inference.sources import ArraySource
from cavmae.finetune.inference.unread_media import UnreadMedia
from cavmae.finetune.inference.views import WindowView
from cavmae.finetune.inference.window_prediction import (
    WINDOWS_AT_ONCE,
    predict_windows,
    windows_at_once,
)
from cavmae.finetune.inference.window_reader import CropReader, Window, read_windows
from tests.finetune.inference.predictors import make_predictor
from tests.finetune.inference.test_window_reader import LENGTH, STARTS, Ahead, source


@pytest.fixture
def two_threads() -> Generator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    left = torch.get_num_threads()
    torch.set_num_threads(threads)
    assert left == 2


def workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if "window-prediction" in thread.name]


def run(folder: Path, media: ArraySource) -> FirstPass:
    folder.mkdir()
    starts = range(0, media.frames - LENGTH + 1, LENGTH // 2)
    unread = UnreadMedia(media, 0, 0.5)
    predictor = make_predictor()
    predictor.thresholds = Thresholds(min_zoom=0.0, min_second_look_iou=0.0)  # looks at everybody
    return first_pass(
        predictor, media, starts, folder, None, 0, True, unread, ignore_progress
    )  # fmt: skip


def test_two_at_a_time_give_what_one_after_the_other_gives(tmp_path: Path) -> None:
    alone = run(tmp_path / "alone", source())
    assert windows_at_once(make_predictor()) == 1
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        both = run(tmp_path / "both", source())
    finally:
        torch.set_num_threads(threads)
    assert alone.people and alone.people.keys() == both.people.keys()
    assert any(sighting.zoom for sightings in alone.people.values() for sighting in sightings)
    for number in alone.people:
        np.testing.assert_allclose(
            alone.wave(number)[: alone.samples], both.wave(number)[: both.samples], atol=1e-6
        )
        for mine, theirs in zip(alone.people[number], both.people[number], strict=True):
            assert (mine.window, mine.zoom, mine.box) == (theirs.window, theirs.zoom, theirs.box)
            assert np.abs(alone.masks(mine).astype(int) - both.masks(theirs)).max() <= 1


def test_a_large_model_has_all_threads(two_threads: None) -> None:
    predictor = make_predictor()
    assert windows_at_once(predictor) == 2
    predictor.num_weights = 200_000_000
    assert windows_at_once(predictor) == 1


def test_two_windows_are_computed_at_the_same_time(
    monkeypatch: pytest.MonkeyPatch, two_threads: None
) -> None:
    """Each waits for another one; a single one at a time would wait in vain."""
    meeting = threading.Barrier(2)
    counts = set()

    def predict(self: WindowPredictor, *rest: object) -> list[DetectedPerson]:
        counts.add(torch.get_num_threads())
        meeting.wait(timeout=30)
        return []

    monkeypatch.setattr(WindowPredictor, "predict", predict)
    predictor, media = make_predictor(), source()
    assert windows_at_once(predictor) == WINDOWS_AT_ONCE == 2
    starts = STARTS[:4]
    windows = list(read_windows(predictor, media, starts, ahead=False))
    unread = UnreadMedia(media, 0, 0.5)
    pairs = list(predict_windows(predictor, windows, [None] * 4, 0, None, unread))
    for window, (wave, people) in zip(windows, pairs, strict=True):
        assert wave is window.wave
        assert people.people == []
    assert counts == {1}
    assert not workers()


def test_an_error_comes_in_its_turn_and_ends_all(two_threads: None) -> None:
    """Of a window that is too loud, of one that cannot be read, and of the former before it."""
    media = Ahead(damaged=STARTS[3])
    predictor = make_predictor()

    def loud(windows: Iterable[Window], at: int) -> Generator[Window]:
        for index, window in enumerate(windows):
            yield window._replace(wave=window.wave * 1e9) if index == at else window

    unread = UnreadMedia(media, 0, 0.5)
    windows = list(read_windows(predictor, source(), STARTS, ahead=False))
    for read, number, message in (
        (loud(windows, 1), 1, "samples as large as"),
        (read_windows(predictor, media, STARTS, ahead=False), 3, "damaged"),
        (
            loud(read_windows(predictor, Ahead(damaged=STARTS[3]), STARTS, ahead=False), 2),
            2,
            "samples as large as",
        ),
    ):
        seen = 0
        with pytest.raises(MediaError, match=message):
            for _ in predict_windows(predictor, read, [None] * len(STARTS), 0, None, unread):
                seen += 1
        assert seen == number
        assert not workers()


def test_giving_up_leaves_nothing_behind(two_threads: None) -> None:
    predictor, media = make_predictor(), source()
    windows = read_windows(predictor, media, STARTS, ahead=False)
    unread = UnreadMedia(media, 0, 0.5)
    predictions = predict_windows(predictor, windows, [None] * len(STARTS), 0, None, unread)
    with contextlib.closing(predictions):
        next(predictions)
        assert workers()
    assert not workers()


def test_black_windows_show_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """But a single pixel that is not black is something to look at."""
    media, predictor = source(), make_predictor()
    media._video = np.zeros_like(media._video)
    media._video[-1, 0, 0, 0] = 1  # in the last of three windows
    predicted = 0
    predict = WindowPredictor.predict

    def counting(self: WindowPredictor, *rest: Any) -> list[DetectedPerson]:
        nonlocal predicted
        predicted += 1
        return predict(self, *rest)

    monkeypatch.setattr(WindowPredictor, "predict", counting)
    windows = read_windows(predictor, media, (0, LENGTH, 2 * LENGTH), ahead=False)
    predictions = list(
        predict_windows(predictor, windows, [None] * 3, 0, None, UnreadMedia(media, 0, 0.5))
    )
    assert predicted == 1
    assert not predictions[0][1].people and not predictions[1][1].people


def test_crops_that_cannot_be_read_end_in_their_turn(
    monkeypatch: pytest.MonkeyPatch, two_threads: None
) -> None:
    def unreadable(self: CropReader, window: int, boxes: object) -> list[WindowView]:
        raise MediaError("decode_error", f"crops of {window}")

    monkeypatch.setattr(CropReader, "views", unreadable)
    predictor, media = make_predictor(), source(scale=4)
    predictor.thresholds = dataclasses.replace(predictor.thresholds, min_zoom=0.0)
    windows = read_windows(predictor, media, STARTS, ahead=False)
    unread = UnreadMedia(media, 0, 0.5)
    with (
        CropReader(predictor, media, STARTS) as crops,
        pytest.raises(MediaError, match="crops of 0"),
    ):
        list(predict_windows(predictor, windows, [None] * len(STARTS), 0, crops, unread))
    assert not workers()
