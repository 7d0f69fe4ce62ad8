"""Windows read ahead: what overlapping windows share is what each would compute alone."""

import contextlib
import dataclasses
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import Tensor

from cavmae.datasets.media import MediaError
from cavmae.finetune.inference.key_tokens import KeyTokens
from cavmae.finetune.inference.predictor import WindowPredictor
from cavmae.finetune.inference.sources import ArraySource
from cavmae.finetune.inference.window_reader import read_windows
from cavmae.pretrain.temporal.settings import JointOptions
from tests.finetune.inference.test_tracker import make_predictor
from tests.finetune.speaker.scenes import ENCODER, SHAPE

HEIGHT, WIDTH = 40, 64  # letterboxed, since the model's frames have another shape
LENGTH = SHAPE.frames
STARTS = (0, LENGTH // 2, LENGTH, 2 * LENGTH + 3, 2 * LENGTH + 4)  # with a gap, and unlike steps


def source() -> ArraySource:
    rng = np.random.default_rng(1)
    frames = rng.integers(0, 255, size=(3 * LENGTH, HEIGHT, WIDTH, 3)).astype(np.uint8)
    wave = rng.normal(size=3 * SHAPE.samples).astype(np.float32) * 0.1
    return ArraySource(frames, wave, 16000, 25.0, (HEIGHT, WIDTH))


def test_what_windows_share_changes_no_prediction(monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = make_predictor()
    made = {"motion": 0, "encode_frames": 0}
    for name in made:
        method = getattr(WindowPredictor, name)

        def counting(
            self: WindowPredictor, frames: Sequence[np.ndarray], *rest: object,
            name: str = name, method: object = method,
        ) -> Tensor:  # fmt: skip
            made[name] += len(frames)
            result: Tensor = method(self, frames, *rest)  # type: ignore[operator]
            return result

        monkeypatch.setattr(WindowPredictor, name, counting)
    key_tokens = KeyTokens(predictor)
    windows = []
    for window in read_windows(predictor, source(), STARTS):
        windows.append((window, key_tokens.of(window.start, window.frames)))
    assert made["motion"] == len({n for s in STARTS for n in range(s, s + LENGTH)})
    # Steps of half a window fall on key frames of the one before, others between them.
    assert made["encode_frames"] == len({s + int(k) for s in STARTS for k in predictor.keys})
    media = source()
    for (window, tokens), start in zip(windows, STARTS, strict=True):
        frames, wave = media.read_frames(start, LENGTH), media.read_audio(start, LENGTH)
        assert window.start == start
        np.testing.assert_array_equal(np.stack(window.frames), np.stack(frames))
        np.testing.assert_array_equal(window.wave, wave)
        assert torch.equal(window.motion, predictor.motion(frames))
        mixture = predictor.prepare(wave)
        shared = predictor.predict(frames, mixture, motion=window.motion, tokens=tokens)
        alone = predictor.predict(frames, mixture)
        assert [person.slot for person in shared] == [person.slot for person in alone]
        assert alone
        for mine, theirs in zip(shared, alone, strict=True):
            np.testing.assert_allclose(mine.voice, theirs.voice, atol=1e-6)
            assert np.abs(mine.masks.astype(int) - theirs.masks).max() <= 1


def test_an_encoder_that_mixes_frames_shares_no_tokens() -> None:
    mixing = dataclasses.replace(ENCODER, temporal=JointOptions(), frames=SHAPE.key_frames)
    predictor = make_predictor(encoder=mixing)
    frames = source().read_frames(0, LENGTH)
    assert KeyTokens(predictor).of(0, frames) is None


class Ahead(ArraySource):
    """Notes in which thread each window is read, and has a damaged one."""

    def __init__(self, damaged: int):
        plain = source()
        super().__init__(plain._video, plain._audio, 16000, 25.0, (HEIGHT, WIDTH))
        self.damaged, self.read = damaged, list[int]()
        self.threads: set[int] = set()
        self.begun = {start: threading.Event() for start in STARTS}

    def read_frames(self, start: int, count: int) -> Sequence[np.ndarray]:
        self.threads.add(threading.get_ident())
        self.begun[start].set()
        if start == self.damaged:
            raise MediaError("decode_error", "damaged")
        self.read.append(start)
        return super().read_frames(start, count)


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
