"""The frame contrast against naive loops, and what must not help it."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from cavmae.datasets.stream.features import MEL_BINS, SILENCE, fbank_batch
from cavmae.pretrain.config import CAVMAEConfig
from cavmae.pretrain.frame_contrast import (
    TimeBins,
    audible_bins,
    frame_contrast,
    group_by_bin,
    hard_negative_fraction,
    loudness,
    time_bins_of,
)
from cavmae.pretrain.masking import random_windows
from cavmae.pretrain.model import CAVMAE

SHAPE = CAVMAEConfig(
    image_height=32, image_width=32, audio_frames=96, width=16, heads=2, depth=1, decoder_width=8,
    decoder_heads=2, decoder_depth=1, contrast_width=8,
)  # fmt: skip


def naive(batch: TimeBins, temperature: float) -> list[float]:
    """Clip by clip, frame by frame."""
    n, f = batch.own_bin.shape
    audio = functional.normalize(batch.audio, dim=-1)
    frames = functional.normalize(batch.frames, dim=-1)
    sums = [0.0] * 4
    count = 0
    for clip in range(n):
        for frame in range(f):
            if not batch.audible[clip, frame]:
                continue
            count += 1
            own = int(batch.own_bin[clip, frame])
            me, mine = frames[clip, frame], audio[clip, own]
            other = [(c, k) for c in range(n) if c != clip for k in range(f)]
            to_sound = [float(me @ audio[c, batch.own_bin[c, k]]) / temperature for c, k in other]
            to_frame = [float(mine @ frames[c, k]) / temperature for c, k in other]
            right = float(me @ mine) / temperature
            inside = [float(me @ s) / temperature for s in audio[clip]]
            rivals = [k for k in range(f) if k == frame or int(batch.own_bin[clip, k]) != own]
            back = [float(mine @ frames[clip, k]) / temperature for k in rivals]

            def cross_entropy(rest: list[float], right: float = right) -> float:
                return math.log(sum(math.exp(x) for x in rest)) - right

            sums[0] += (cross_entropy([right, *to_sound]) + cross_entropy([right, *to_frame])) / 2
            sums[1] += (cross_entropy(inside) + cross_entropy(back)) / 2
            sums[2] += all(right > x for x in to_sound)
            sums[3] += inside.index(max(inside)) == own
    return [x / max(1, count) for x in sums]


@given(st.integers(2, 5), st.integers(2, 4), st.integers(4, 6), st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_losses_and_accuracies_against_a_naive_loop(n: int, f: int, t: int, seed: int) -> None:
    torch.manual_seed(seed)
    batch = TimeBins(
        torch.randn(n, t, 6), torch.randn(n, f, 6), torch.randint(t, (n, f)),
        torch.rand(n, f) > 0.4,
    )  # fmt: skip
    result = [float(x) for x in frame_contrast(batch, 0.2)]
    assert result == pytest.approx(naive(batch, 0.2), rel=1e-4, abs=1e-5)


def test_a_batch_without_any_sound_has_no_loss_and_no_gradient() -> None:
    frames = torch.randn(2, 3, 4, requires_grad=True)
    audible = torch.zeros(2, 3, dtype=torch.bool)
    own = torch.arange(3).repeat(2, 1)
    result = frame_contrast(TimeBins(torch.randn(2, 5, 4), frames, own, audible), 0.1)
    (result.easy + result.hard).backward()
    assert [float(x) for x in result] == [0, 0, 0, 0]
    assert frames.grad is not None
    assert frames.grad.abs().sum() == 0


def test_near_silent_time_bins_ask_for_no_match() -> None:
    """What a frame of a near-silent time bin shows changes nothing of its own being found."""
    torch.manual_seed(0)
    own = torch.arange(4).repeat(3, 1)
    audible = torch.ones(3, 4, dtype=torch.bool)
    audible[1, 2] = False
    frames = torch.randn(3, 4, 6, requires_grad=True)
    audio = torch.randn(3, 4, 6, requires_grad=True)
    loss = frame_contrast(TimeBins(audio, frames, own, audible), 0.1)
    quiet = frames.detach().clone()
    quiet[1, 2] = audio[1, 2].detach()  # even a perfect match of theirs
    other = frame_contrast(TimeBins(audio, quiet, own, audible), 0.1)
    assert float(loss.hard_accuracy) == float(other.hard_accuracy)
    assert float(loss.easy_accuracy) == float(other.easy_accuracy)


def test_loudness_is_the_mean_power_in_decibel() -> None:
    torch.manual_seed(0)
    wave = torch.randn(1, 16_000 * 2) * 0.1
    wave[:, 16_000:] *= 0.01  # 40 dB softer
    fbank = fbank_batch(wave, torch.tensor([wave.shape[1]]))[:, :192]
    level = loudness(fbank, torch.tensor([192]), 12)
    assert level[0, :5].mean() - level[0, 7:].mean() == pytest.approx(40, abs=0.5)
    audible = audible_bins(fbank, torch.tensor([192]), 12, 30)
    assert audible[0].tolist() == [True] * 6 + [True] * bool(audible[0, 6]) + [False] * (
        6 - bool(audible[0, 6])
    )
    assert audible_bins(fbank, torch.tensor([192]), 12, 50).all()
    # What is no sound at all is never heard, nor is digital silence.
    assert not audible_bins(fbank, torch.tensor([64]), 12, 50)[0, 4:].any()
    assert not audible_bins(torch.full((1, 96, MEL_BINS), SILENCE), torch.tensor([96]), 6, 30).any()


def test_time_bins_of_frames() -> None:
    times = torch.tensor([[0.0, 0.079, 0.16, 2.559, 2.6, -0.01]])
    assert time_bins_of(times, 2.56, 16).tolist() == [[0, 0, 1, 15, 15, 0]]


def test_groups_are_time_bins() -> None:
    """Patches of sound run time fastest: a column has the same time and every frequency."""
    time = torch.arange(6).repeat(8)[None, :, None].float()
    cut = group_by_bin(time, (8, 6))
    assert cut.shape == (6, 8, 1)
    assert cut[:, :, 0].tolist() == [[number] * 8 for number in range(6)]


def test_embeddings_of_frames_do_not_know_their_place_in_time() -> None:
    torch.manual_seed(0)
    model = CAVMAE(SHAPE).eval()
    frames = torch.randn(2, 5, 3, 32, 32)
    result = model.frame_embeddings(model.frame_features(frames))
    assert result.shape == (2, 5, 8)
    order = torch.tensor([3, 0, 4, 1, 2])
    moved = model.frame_embeddings(model.frame_features(frames[:, order]))
    torch.testing.assert_close(moved, result[:, order])


def test_a_window_of_frames_is_the_same_in_all_of_a_clip() -> None:
    torch.manual_seed(0)
    grid = (6, 8)
    windows = random_windows(500, grid, 0.5, torch.device("cpu"))
    assert windows.shape == (500, 12)
    corners = set()
    for patches in windows.tolist():
        top, left = divmod(patches[0], 8)
        corners.add((top, left))
        assert patches == [(top + y) * 8 + left + x for y in range(3) for x in range(4)]
    assert corners == {(y, x) for y in range(4) for x in range(5)}
    model = CAVMAE(SHAPE).eval()
    frames = torch.randn(2, 5, 3, 32, 32)
    keep = torch.tensor([[0, 1], [1, 3]])
    seen = model.frame_features(frames, keep)
    hidden = frames.clone()
    hidden[0, :, :, 16:] += 5
    hidden[1, :, :, :, :16] += 5
    torch.testing.assert_close(model.frame_features(hidden, keep), seen)
    assert not model.frame_features(hidden)[0].allclose(model.frame_features(frames)[0])


def test_embeddings_of_time_bins_see_their_audio() -> None:
    torch.manual_seed(0)
    model = CAVMAE(SHAPE).eval()
    audio = torch.randn(1, 96, 128)
    before = model.audio_bin_embeddings(model.audio_features(audio))
    assert before.shape == (1, 6, 8)
    changed = audio.clone()
    changed[:, 32:48] += 3  # the third time bin
    after = model.audio_bin_embeddings(model.audio_features(changed))
    moved = (after - before).norm(dim=-1)[0]
    assert moved.argmax() == 2


def test_hard_negatives_come_after_the_first_half() -> None:
    shares = [hard_negative_fraction(step / 10, 0.25, 0.5) for step in range(10)]
    assert shares == [0.0] * 5 + [0.25] * 5
