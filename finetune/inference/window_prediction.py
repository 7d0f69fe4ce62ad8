"""People of each window of a recording; on the CPU, of two windows at a time."""

import collections
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch

from cavmae.common.errors import CavmaeError
from cavmae.datasets.media import MediaError
from cavmae.datasets.stream.rates import VIDEO_RATE
from cavmae.finetune.inference.key_tokens import KeyTokens
from cavmae.finetune.inference.predictor import (
    Cue,
    DetectedPerson,
    PreparedMixture,
    WindowPredictor,
)
from cavmae.finetune.inference.second_look import refine_people, second_looks
from cavmae.finetune.inference.shots import find_cuts, shots_of, split_at_cuts, visible_keys
from cavmae.finetune.inference.unread_media import UnreadMedia
from cavmae.finetune.inference.window_reader import CropReader, Window

WINDOWS_AT_ONCE = 2  # each keeps its activations in memory
# Of a model whose windows share the cores. `small` has 17 million, and takes 0.7 to 1.0 of the time
# of one window after the other; `base`, with 208 million, takes 1.3 (docs/benchmarks/separate.md).
MAX_WEIGHTS = 50_000_000
MAX_SAMPLE = 1e6  # of full scale; squares of larger samples may overflow
ROUNDING = 0.01  # frames by which the time of a cue may lie before its frame


class WindowPeople(NamedTuple):
    """People of a window.

    Attributes:
        people: within shots.
        cued: whether a cue means each of them.
        zooms: magnification of each second look, by slot.
        cuts: frames that begin a shot, counted from the start of the window.
        openings: float32 [T], of all mouths, added up.
    """

    people: list[DetectedPerson]
    cued: list[bool]
    zooms: dict[int, float]
    cuts: tuple[int, ...]
    openings: np.ndarray


def windows_at_once(predictor: WindowPredictor) -> int:
    """Number of windows that :func:`predict_windows` computes at a time: 1 or 2."""
    is_shared = (
        predictor.device.type == "cpu"
        and predictor.num_weights <= MAX_WEIGHTS
        and torch.get_num_threads() >= WINDOWS_AT_ONCE
    )
    return WINDOWS_AT_ONCE if is_shared else 1


class _WindowPrediction(NamedTuple):
    """Prediction for the whole frames of a window.

    Attributes:
        people: of the window.
        mixture: that second looks share.
        key: index of the key frame of a cue.
        cuts: frames that begin a shot, counted from the start of the window.
    """

    people: list[DetectedPerson]
    mixture: PreparedMixture
    key: int
    cuts: tuple[int, ...]


class _PendingWindow(NamedTuple):
    """A window whose prediction is awaited.

    Attributes:
        number: index of the window.
        wave: float32 [S], the mixture.
        frame_size: (height, width) of the frames in pixels.
        cue: None: it has none.
        future: of the prediction.
    """

    number: int
    wave: np.ndarray
    frame_size: tuple[int, int]
    cue: Cue | None
    future: Future[_WindowPrediction]


def predict_windows(
    predictor: WindowPredictor,
    windows: Iterable[Window],
    cues: Sequence[Cue | None],
    hint: int,
    crop_reader: CropReader | None,
    unread: UnreadMedia,
) -> Generator[tuple[np.ndarray, WindowPeople]]:
    """The mixture, float32 [S], and the people of each window, in order.

    On a CPU two windows of a small model, or two second looks, share its threads: a single one
    hardly gains by a second thread, since its operations are small. PyTorch's number of threads,
    that of the whole process, is halved until the end.

    Args:
        predictor: the model.
        windows: in order, as many as ``cues``.
        cues: of each window; None: it has none.
        hint: class number of the people; 0: none.
        crop_reader: reads the crops around small people on which the model is run again; None:
            it is not.
        unread: losses of the recording.

    Raises:
        MediaError: a window cannot be read, more of the recording is lost than the settings allow,
            or its audio is too loud; after the windows before it.
        NonFiniteError: the model gives NaN or Inf.
        CavmaeError: no key frame is in the shot of a box, point or mask.
    """
    key_tokens = KeyTokens(predictor)
    at_once = windows_at_once(predictor)
    reader = iter(windows)
    pending: collections.deque[_PendingWindow] = collections.deque()
    unreadable: Exception | None = None
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(at_once, "window-prediction")

    def finish() -> tuple[np.ndarray, WindowPeople]:
        window = pending.popleft()
        return window.wave, _window_people(predictor, window, hint, crop_reader, pool)

    try:
        # A thread takes the number that is set when it first computes.
        torch.set_num_threads(threads // at_once)
        for number, cue in enumerate(cues):
            try:
                window = next(reader)
            except Exception as error:  # noqa: BLE001 - raised below, after the windows before it
                unreadable = error
                break
            future = pool.submit(_predict_window, predictor, window, key_tokens, cue, hint, unread)
            pending.append(_PendingWindow(number, window.wave, window.view.frame_size, cue, future))
            # One more, so that the pool is busy while crops of a window are read.
            if len(pending) > at_once:
                yield finish()
        while pending:
            yield finish()
    finally:
        torch.set_num_threads(threads)
        pool.shutdown(cancel_futures=True)
    if unreadable is not None:
        raise unreadable


def _predict_window(
    predictor: WindowPredictor,
    window: Window,
    key_tokens: KeyTokens,
    cue: Cue | None,
    hint: int,
    unread: UnreadMedia,
) -> _WindowPrediction:
    unread.check()
    if (peak := float(np.abs(window.wave).max())) > MAX_SAMPLE:
        raise MediaError("decode_error", f"its audio has samples as large as {peak:.1e}")
    mixture = predictor.prepare(window.wave)
    if window.is_black:  # as where nothing decodes
        return _WindowPrediction([], mixture, 0, ())
    cuts = find_cuts(window.thumbnails, predictor.thresholds.min_cut_difference)
    key = 0
    if cue is not None and cue.kind != "voice":
        key = _key_in_shot(cue, window.start, predictor.keys, cuts)
    tokens = key_tokens.of(window.start, window.view)
    people = predictor.predict(window.view, mixture, cue, key, hint, tokens)
    return _WindowPrediction(people, mixture, key, cuts)


def _window_people(
    predictor: WindowPredictor,
    window: _PendingWindow,
    hint: int,
    crop_reader: CropReader | None,
    pool: Executor,
) -> WindowPeople:
    """People of a window, those who are small by a second look."""
    prediction = window.future.result()
    people, zooms = prediction.people, dict[int, float]()
    if crop_reader is not None and (second := second_looks(predictor, window.frame_size, people)):
        views = crop_reader.views(window.number, [crop.box for crop in second])
        futures = [
            pool.submit(predictor.predict, view, prediction.mixture, crop.cue, crop.key, hint)
            for crop, view in zip(second, views, strict=True)
        ]
        predictions = [future.result() for future in futures]
        people, zooms = refine_people(predictor, people, second, predictions)
    parts = split_at_cuts(
        people, prediction.cuts, predictor.keys, predictor.thresholds.min_area_fraction
    )
    openings = sum((p.openings for p in people), np.zeros(predictor.config.frames, np.float32))
    return WindowPeople(
        parts, _cued(parts, window.cue, prediction.key), zooms, prediction.cuts, openings
    )


def _cued(people: Sequence[DetectedPerson], cue: Cue | None, key: int) -> list[bool]:
    """Whether a cue means each person: slot 0; where a cut has split it, what is nearest in time.

    Args:
        people: of the window, within shots.
        cue: None: there is none in this window.
        key: index of the key frame of a box, point or mask.
    """
    meant = [index for index, person in enumerate(people) if person.slot == 0]
    if cue is None:
        return [False] * len(people)
    if cue.kind != "voice" and len(meant) > 1:

        def distance(index: int) -> int:
            visible = np.flatnonzero(visible_keys(people[index]))
            return int(np.abs(visible - key).min(initial=len(people[index].masks)))

        meant = [min(meant, key=distance)]
    return [index in meant for index in range(len(people))]


def _key_in_shot(cue: Cue, start: int, keys: np.ndarray, cuts: Sequence[int]) -> int:
    """Index of the key frame that is nearest to the time of a cue, in the same shot.

    Args:
        cue: a box, point or mask.
        start: first frame of the window.
        keys: key frames, counted from there.
        cuts: frames that begin a shot, likewise.

    Raises:
        CavmaeError: there is none.
    """
    frame = cue.time * VIDEO_RATE - start
    shot = shots_of(np.array([int(frame + ROUNDING)]), cuts)[0]
    in_shot = np.flatnonzero(shots_of(keys, cuts) == shot)
    if not in_shot.size:
        raise CavmaeError(
            f"The shot at {cue.time:g} s is too short, or cut too near to it, for the {cue.kind} "
            "to be looked up: name a time further away from the cut."
        )
    return int(in_shot[np.abs(keys[in_shot] - frame).argmin()])
