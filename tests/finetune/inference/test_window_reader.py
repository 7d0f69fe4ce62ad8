"""Windows read ahead: what overlapping windows share is what each would compute alone."""

import contextlib
import dataclasses
import itertools
import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cavmae.common.boxes import WHOLE, Box
from cavmae.datasets.media import MediaError, probe
from cavmae.datasets.media.geometry import cut_from
from cavmae.datasets.media.playback import Playback
from cavmae.finetune.inference import window_reader
from cavmae.finetune.inference.key_tokens import KeyTokens
from cavmae.finetune.inference.predictor import WindowPredictor
from cavmae.finetune.inference.shots import thumbnail
from cavmae.finetune.inference.sources import ArraySource
from cavmae.finetune.inference.views import KeyView, ViewSizes, WindowView
from cavmae.finetune.inference.window_reader import CropReader, read_windows
from cavmae.pretrain.temporal.settings import JointOptions
from cavmae.tools.benchmarks.media import VideoSpec, make_video
from tests.finetune.inference.predictors import make_predictor, view_of
from tests.finetune.speaker.scenes import ENCODER, SHAPE
from tests.tools.test_separate_losses import spoil

HEIGHT, WIDTH = 40, 64  # letterboxed, since the model's frames have another shape
LENGTH = SHAPE.frames
STARTS = (0, LENGTH // 2, LENGTH, 2 * LENGTH + 3, 2 * LENGTH + 4)  # with a gap, and unlike steps


def source(scale: int = 1) -> ArraySource:
    rng = np.random.default_rng(1)
    size = HEIGHT * scale, WIDTH * scale
    frames = rng.integers(0, 255, size=(3 * LENGTH, *size, 3)).astype(np.uint8)
    wave = rng.normal(size=3 * SHAPE.samples).astype(np.float32) * 0.1
    return ArraySource(frames, wave, 16000, 25.0, size)


def test_what_windows_share_changes_no_prediction(monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = make_predictor()
    calls = {"motion_of": 0, "key_of": 0}
    for name in calls:
        method = getattr(ViewSizes, name)

        def counting(
            self: ViewSizes, frame: np.ndarray, box: Box, name: str = name, method: Any = method
        ) -> Any:
            calls[name] += 1
            return method(self, frame, box)

        monkeypatch.setattr(ViewSizes, name, counting)
    encoded = 0
    encode_key_views = WindowPredictor.encode_key_views

    def encode(self: WindowPredictor, key_views: Sequence[KeyView]) -> Tensor:
        nonlocal encoded
        encoded += len(key_views)
        return encode_key_views(self, key_views)

    monkeypatch.setattr(WindowPredictor, "encode_key_views", encode)
    key_tokens = KeyTokens(predictor)
    windows = []
    for window in read_windows(predictor, source(), STARTS):
        windows.append((window, key_tokens.of(window.start, window.view)))
    # Steps of half a window fall on key frames of the one before, others between them.
    keys = len({s + int(k) for s in STARTS for k in predictor.keys})
    assert calls["motion_of"] == len({n for s in STARTS for n in range(s, s + LENGTH)})
    assert calls["key_of"] == encoded == keys
    media = source()
    for (window, tokens), start in zip(windows, STARTS, strict=True):
        frames, wave = media.read_frames(start, LENGTH), media.read_audio(start, LENGTH)
        assert window.start == start
        assert_same_view(window.view, view_of(predictor, frames))
        for small, frame in zip(window.thumbnails, frames, strict=True):
            np.testing.assert_array_equal(small, thumbnail(frame))
        assert not window.is_black
        np.testing.assert_array_equal(window.wave, wave)
        mixture = predictor.prepare(wave)
        shared = predictor.predict(window.view, mixture, tokens=tokens)
        alone = predictor.predict(view_of(predictor, frames), mixture)
        assert [person.slot for person in shared] == [person.slot for person in alone]
        assert alone
        for mine, theirs in zip(shared, alone, strict=True):
            np.testing.assert_allclose(mine.voice, theirs.voice, atol=1e-6)
            assert np.abs(mine.masks.astype(int) - theirs.masks).max() <= 1


def assert_same_view(view: WindowView, expected: WindowView) -> None:
    assert (view.box, view.frame_size) == (expected.box, expected.frame_size)
    assert torch.equal(view.motion, expected.motion)
    for mine, theirs in zip(view.key_views, expected.key_views, strict=True):
        assert torch.equal(mine.image, theirs.image)
        assert torch.equal(mine.colors, theirs.colors)


def test_an_encoder_that_mixes_frames_shares_no_tokens() -> None:
    mixing = dataclasses.replace(ENCODER, temporal=JointOptions(), frames=SHAPE.key_frames)
    predictor = make_predictor(encoder=mixing)
    view = view_of(predictor, source().read_frames(0, LENGTH))
    assert KeyTokens(predictor).of(0, view) is None


class Lent(ArraySource):
    """Lends each frame as an array of its own, and counts those that are in use."""

    def __init__(self) -> None:
        plain = source(scale=2)  # frames that are larger than their thumbnails
        super().__init__(plain._video, plain._audio, 16000, 25.0, plain._size)
        self.lent = weakref.WeakSet[LentFrame]()
        self.most, self.reads, self.reopened = 0, list[int](), list[int]()

    def read_frames(self, start: int, count: int) -> Sequence[np.ndarray]:
        self.reads.append(start)
        frames = [frame.view(LentFrame) for frame in super().read_frames(start, count)]
        self.lent.update(frames)
        self.most = max(self.most, len(self.lent))
        return frames

    def reopen(self, first: int) -> contextlib.AbstractContextManager[ArraySource]:
        self.reopened.append(first)
        return super().reopen(first)


class LentFrame(np.ndarray):
    """A frame that can be told from others, as members of a set are."""

    __hash__ = object.__hash__  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:  # type: ignore[override]
        return self is other


@pytest.fixture
def few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> int:
    """A quarter of the frames of a window."""
    monkeypatch.setattr(window_reader, "FRAMES_PER_READ", LENGTH // 4)
    return LENGTH // 4


def test_windows_keep_no_frames_in_full_size(few_at_a_time: int) -> None:
    media = Lent()
    windows = list(read_windows(make_predictor(), media, STARTS, ahead=False))
    assert len(windows) == len(STARTS)
    assert media.most <= 2 * few_at_a_time
    assert media.reads == sorted(media.reads)


@pytest.mark.parametrize("looked_at", [range(5), (0, 2, 4), (3,), ()])
@pytest.mark.parametrize("lead", [0, -5, 2 * LENGTH])
def test_regions_of_any_window_are_read_once_more(
    looked_at: Sequence[int], lead: int, few_at_a_time: int
) -> None:
    """Of windows that overlap, and of those beyond both ends of the recording."""
    predictor, media, plain = make_predictor(), Lent(), source(scale=2)
    starts = [lead + start for start in STARTS]
    boxes = ((0.0, 0.0, 1.0, 1.0), (0.25, 0.1, 0.6, 0.9))
    with CropReader(predictor, media, starts) as reader:
        assert not media.reopened
        for index in looked_at:
            views = reader.views(index, boxes)
            numbers = np.arange(starts[index], starts[index] + LENGTH).clip(0, plain.frames - 1)
            frames = [plain.read_frames(int(number), 1)[0] for number in numbers]
            for view, box in zip(views, boxes, strict=True):
                assert_same_view(view, view_of(predictor, frames, box))
    first = min(max(0, starts[looked_at[0]]), plain.frames - 1) if looked_at else 0
    assert media.reopened == ([first] if looked_at else [])
    assert all(start >= first for start in media.reads)
    assert media.reads == sorted(media.reads)
    overlap = max(0, *(start + LENGTH - later for start, later in itertools.pairwise(starts)))
    assert media.most <= overlap + 2 * few_at_a_time


@pytest.mark.parametrize("missing", [0, 1])
def test_what_lies_far_between_crops_is_not_decoded(
    missing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for frames that do not decode, which show the last one before them."""
    monkeypatch.setattr(window_reader, "WORTH_SEEKING", LENGTH)
    predictor, media = make_predictor(), Lent()
    media.missing = missing
    starts = (0, LENGTH // 2, 2 * LENGTH)
    with CropReader(predictor, media, starts) as reader:
        for index in (0, 2):
            (view,) = reader.views(index, [WHOLE])
            frames = source(scale=2).read_frames(starts[index], LENGTH)
            assert_same_view(view, view_of(predictor, frames))
    assert media.reopened == ([0] if missing else [0, 2 * LENGTH])
    assert any(LENGTH <= start < 2 * LENGTH for start in media.reads) == bool(missing)


@pytest.mark.parametrize("looked_at", [(0, 1, 2, 3), (3,), (0, 3), (1, 2)])
@pytest.mark.parametrize("seeking", [8, 1000])
@pytest.mark.parametrize("damaged", [False, True])
def test_crops_of_a_file_are_those_of_its_frames(
    tmp_path: Path, looked_at: Sequence[int], seeking: int, damaged: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Of frames that are shown longer than one of 25 Hz, and far from the nearest key frame.

    Also of frames that do not decode, which show one before them, from windows without crops.
    """
    monkeypatch.setattr(window_reader, "WORTH_SEEKING", seeking)
    spec = VideoSpec(
        seconds=6.0, fps=20.0, size=(96, 64), clutter=True, codec_options=(("g", "50"),)
    )
    path = make_video(tmp_path / "a.mp4", spec)
    if damaged:
        spoil(path, "video", 0.1, zeros=True)
    info = probe(str(path))
    geometry = cut_from(info, (64, 96), (64, 96))
    predictor = make_predictor()
    starts = (0, LENGTH // 2, 3 * LENGTH, 6 * LENGTH)
    with Playback(info, geometry) as playback:
        frames = playback.read_frames(0, 7 * LENGTH)
        assert bool(playback.missing) == damaged
        with CropReader(predictor, playback, starts) as reader:
            for index in looked_at:
                (view,) = reader.views(index, [(0.1, 0.2, 0.7, 0.9)])
                own = frames[starts[index] : starts[index] + LENGTH]
                assert_same_view(view, view_of(predictor, own, (0.1, 0.2, 0.7, 0.9)))


class Ahead(ArraySource):
    """Notes in which thread each window is read, and has a damaged one."""

    def __init__(self, damaged: int):
        plain = source()
        super().__init__(plain._video, plain._audio, 16000, 25.0, (HEIGHT, WIDTH))
        self.damaged, self.read = damaged, list[int]()
        self.threads: set[int] = set()
        self.begun = {start: threading.Event() for start in STARTS}

    def read_audio(self, start: int, count: int) -> np.ndarray:
        self.threads.add(threading.get_ident())
        self.begun[start].set()
        if start == self.damaged:
            raise MediaError("decode_error", "damaged")
        self.read.append(start)
        return super().read_audio(start, count)


def test_the_next_window_is_read_meanwhile() -> None:
    """One window ahead and no more, by another thread; an error comes in its window's turn."""
    media = Ahead(damaged=STARTS[3])
    seen = []
    with (
        contextlib.closing(read_windows(make_predictor(), media, STARTS)) as windows,
        pytest.raises(MediaError, match="damaged"),
    ):
        for number, window in enumerate(windows):
            seen.append(window.start)
            assert media.begun[STARTS[number + 1]].wait(timeout=30)
            assert not any(media.begun[start].is_set() for start in STARTS[number + 2 :])
    assert seen == media.read == list(STARTS[:3])
    assert threading.get_ident() not in media.threads


def test_giving_up_ends_the_reader_and_leaves_nothing_behind() -> None:
    media = Ahead(damaged=-1)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with contextlib.closing(read_windows(make_predictor(), media, STARTS)) as windows:
            next(windows)
            with ThreadPoolExecutor(1) as pool:
                assert torch.get_num_threads() == pool.submit(torch.get_num_threads).result() == 3
    finally:
        torch.set_num_threads(threads)
    assert not any("window-reader" in thread.name for thread in threading.enumerate())
