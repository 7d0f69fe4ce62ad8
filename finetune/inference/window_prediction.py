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
from cavmae.finetune.inference.detections import DetectedPerson
from cavmae.finetune.inference.key_tokens import KeyTokens
from cavmae.finetune.inference.movement import measure_movements
from cavmae.finetune.inference.predictor import Cue, PreparedMixture, WindowPredictor
from cavmae.finetune.inference.second_look import SecondLook, refine_people, second_looks
from cavmae.finetune.inference.shots import find_cuts, shots_of, split_at_cuts, visible_keys
from cavmae.finetune.inference.unread_media import UnreadMedia
from cavmae.finetune.inference.window_reader import CropReader, Window

WINDOWS_AT_ONCE = 2  # each keeps its activations in memory
SPARE_WINDOWS = 1  # that wait for the model, so that it is busy while crops of others are read
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
    """Number of windows that :func:`predict_windows` computes at a time: 1 or 2.

    Two take 0.7 to 1.0 of the time of one after the other with `small`, but 1.3 with `base`
    (docs/benchmarks/separate.md).
    """
    is_shared = (
        predictor.device.type == "cpu"
        and not predictor.is_large
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


class _SecondPrediction(NamedTuple):
    """Prediction for a window, whose small people are awaited.

    Attributes:
        first: prediction for the whole frames.
        second: second looks at small people.
        futures: prediction of each of those.
    """

    first: _WindowPrediction
    second: Sequence[SecondLook]
    futures: Sequence[Future[list[DetectedPerson]]]


class _PendingWindow(NamedTuple):
    """A window whose prediction is awaited.

    Attributes:
        wave: float32 [S], the mixture.
        cue: None: it has none.
        future: of the prediction.
    """

    wave: np.ndarray
    cue: Cue | None
    future: Future[_SecondPrediction]


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
    # One thread reads the crops of one window after the other, while the pool is busy with others.
    crop_thread = ThreadPoolExecutor(1, "crop-reader")

    def finish() -> tuple[np.ndarray, WindowPeople]:
        window = pending.popleft()
        return window.wave, _window_people(predictor, window.future.result(), window.cue)

    try:
        # A thread takes the number that is set when it first computes.
        torch.set_num_threads(threads // at_once)
        for number, cue in enumerate(cues):
            try:
                window = next(reader)
            except Exception as error:  # noqa: BLE001 - raised below, after the windows before it
                unreadable = error
                break
            first = pool.submit(_predict_window, predictor, window, key_tokens, cue, hint, unread)
            size = window.view.frame_size
            future = crop_thread.submit(
                _predict_crops, predictor, number, size, first, hint, crop_reader, pool
            )
            pending.append(_PendingWindow(window.wave, cue, future))
            if len(pending) >= at_once + SPARE_WINDOWS:
                yield finish()
        while pending:
            yield finish()
    finally:
        torch.set_num_threads(threads)
        crop_thread.shutdown(wait=False, cancel_futures=True)
        pool.shutdown(cancel_futures=True)
        crop_thread.shutdown()
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
    letterbox = predictor.sizes.letterbox(window.view.box, window.view.frame_size)
    movements = measure_movements(
        window.view.motion, letterbox, [p.masks for p in people], predictor.keys, cuts
    )
    people = [
        person._replace(movement=movement)
        for person, movement in zip(people, movements, strict=True)
    ]
    return _WindowPrediction(people, mixture, key, cuts)


def _predict_crops(
    predictor: WindowPredictor,
    window: int,
    frame_size: tuple[int, int],
    future: Future[_WindowPrediction],
    hint: int,
    crop_reader: CropReader | None,
    pool: Executor,
) -> _SecondPrediction:
    """Reads the crops of second looks at a window, and submits them.

    Args:
        window: index of the window; they come in order.
        frame_size: (height, width) of the frames in pixels.
        future: prediction for the whole frames.
        hint: class number of the people; 0: none.
        crop_reader: None: there are no second looks.
        pool: to which the crops are submitted.
    """
    first = future.result()
    if crop_reader is None:
        return _SecondPrediction(first, [], [])
    second = second_looks(predictor, frame_size, first.people)
    views = crop_reader.views(window, [crop.box for crop in second]) if second else []
    futures = [
        pool.submit(predictor.predict, view, first.mixture, crop.cue, crop.key, hint)
        for crop, view in zip(second, views, strict=True)
    ]
    return _SecondPrediction(first, second, futures)


def _window_people(
    predictor: WindowPredictor, prediction: _SecondPrediction, cue: Cue | None
) -> WindowPeople:
    """People of a window, those who are small by a second look, within shots."""
    first, second, futures = prediction
    predictions = [future.result() for future in futures]
    people, zooms = refine_people(predictor, first.people, second, predictions)
    area = predictor.thresholds.min_area_fraction
    parts = split_at_cuts(people, first.cuts, predictor.keys, area)
    openings = sum((p.openings for p in people), np.zeros(predictor.config.frames, np.float32))
    return WindowPeople(parts, _cued(parts, cue, first.key), zooms, first.cuts, openings)


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
