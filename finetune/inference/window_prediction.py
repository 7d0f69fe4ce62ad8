"""People of each window of a recording; on the CPU, of two windows at a time."""

import collections
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch

from cavmae.common.boxes import WHOLE
from cavmae.common.errors import CavmaeError
from cavmae.datasets.media import MediaError
from cavmae.datasets.stream.rates import VIDEO_RATE
from cavmae.finetune.inference.key_tokens import KeyTokens
from cavmae.finetune.inference.predictor import Cue, DetectedPerson, WindowPredictor
from cavmae.finetune.inference.second_look import refine_small_people
from cavmae.finetune.inference.shots import find_cuts, shots_of, split_at_cuts, visible_keys
from cavmae.finetune.inference.unread_media import UnreadMedia
from cavmae.finetune.inference.window_reader import Window

WINDOWS_AT_ONCE = 2  # each keeps its frames and activations in memory
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


def reads_ahead(predictor: WindowPredictor) -> bool:
    """Whether a thread should read the next window while the model is busy.

    Not where two windows at a time keep all cores busy, nor for a large model on the CPU: reading
    takes a hundredth of its time, and the frames of one more window 130 MB.
    """
    is_slow = predictor.device.type == "cpu" and predictor.num_weights > MAX_WEIGHTS
    return windows_at_once(predictor) == 1 and not is_slow


def predict_windows(
    predictor: WindowPredictor,
    windows: Iterable[Window],
    cues: Sequence[Cue | None],
    hint: int,
    second_look: bool,
    unread: UnreadMedia,
) -> Generator[tuple[np.ndarray, WindowPeople]]:
    """The mixture, float32 [S], and the people of each window, in order.

    On a CPU two windows of a small model share its threads: a single one hardly gains by a second
    thread, since its operations are small. PyTorch's number of threads, that of the whole process,
    is halved until the end.

    Args:
        predictor: the model.
        windows: in order, as many as ``cues``.
        cues: of each window; None: it has none.
        hint: class number of the people; 0: none.
        second_look: run the model again on crops around small people.
        unread: losses of the recording.

    Raises:
        MediaError: a window cannot be read, more of the recording is lost than the settings allow,
            or its audio is too loud; after the windows before it.
        NonFiniteError: the model gives NaN or Inf.
        CavmaeError: no key frame is in the shot of a box, point or mask.
    """
    key_tokens = KeyTokens(predictor)

    def predict(window: Window, cue: Cue | None) -> WindowPeople:
        return _predict_window(predictor, window, key_tokens, cue, hint, second_look, unread)

    # Frames take much memory: neither loop keeps those of a window whose people it has or awaits.
    reader = iter(windows)
    if windows_at_once(predictor) == 1:
        for cue in cues:
            window = next(reader)
            wave, people = window.wave, predict(window, cue)
            del window
            yield wave, people
        return
    pending: collections.deque[tuple[np.ndarray, Future[WindowPeople]]] = collections.deque()
    unreadable: Exception | None = None
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(WINDOWS_AT_ONCE, "window-prediction")
    try:
        # A thread takes the number that is set when it first computes.
        torch.set_num_threads(threads // WINDOWS_AT_ONCE)
        for cue in cues:
            try:
                window = next(reader)
            except Exception as error:  # noqa: BLE001 - raised below, after the windows before it
                unreadable = error
                break
            pending.append((window.wave, pool.submit(predict, window, cue)))
            del window
            if len(pending) == WINDOWS_AT_ONCE:
                wave, future = pending.popleft()
                yield wave, future.result()
        for wave, future in pending:
            yield wave, future.result()
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
    second_look: bool,
    unread: UnreadMedia,
) -> WindowPeople:
    unread.check()
    frames, wave = window.frames, window.wave
    if (peak := float(np.abs(wave).max())) > MAX_SAMPLE:
        raise MediaError("decode_error", f"its audio has samples as large as {peak:.1e}")
    if not any(frame.any() for frame in frames):  # black, as where nothing decodes, shows no people
        return WindowPeople([], [], {}, (), np.zeros(len(frames), np.float32))
    thresholds, keys = predictor.thresholds, predictor.keys
    cuts = find_cuts(frames, thresholds.min_cut_difference)
    key = 0
    if cue is not None and cue.kind != "voice":
        key = _key_in_shot(cue, window.start, keys, cuts)
    mixture = predictor.prepare(wave)
    tokens = key_tokens.of(window.start, frames)
    people = predictor.predict(frames, mixture, WHOLE, cue, key, hint, window.motion, tokens)
    zooms: dict[int, float] = {}
    if second_look:
        people, zooms = refine_small_people(predictor, frames, mixture, people, hint)
    openings = sum((p.openings for p in people), np.zeros(len(frames), np.float32))
    parts = split_at_cuts(people, cuts, keys, thresholds.min_area_fraction)
    return WindowPeople(parts, _cued(parts, cue, key), zooms, cuts, openings)


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
