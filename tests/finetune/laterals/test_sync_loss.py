"""Synchronisation loss: its definition by a loop, its curriculum, and what is left out."""

import pytest
import torch
from torch import Tensor

from cavmae.finetune.laterals.sync_loss import (
    SyncLoss,
    SyncPairs,
    draw_pairs,
    sync_distances,
    windows_of,
)

FRAMES, STEPS = 12, 4
WINDOW = FRAMES // 3


def streams(count: int = 3) -> dict[str, Tensor]:
    torch.manual_seed(2)
    return {
        "video": torch.randn(count, FRAMES, 6),
        "audio": torch.randn(count, FRAMES, 5),
        "log_mel": torch.randn(count, FRAMES * STEPS, 7),
        "ids": torch.arange(count),
        "audio_ids": torch.arange(count),
        "usable": torch.ones(count, dtype=torch.bool),
    }


def loss_of(loss: SyncLoss, values: dict[str, Tensor], progress: float, seed: int = 3) -> Tensor:
    torch.manual_seed(seed)
    result: Tensor = loss(**values, progress=progress)
    return result


def make_loss() -> SyncLoss:
    torch.manual_seed(0)
    return SyncLoss(6, 5)


def test_distances_by_a_loop() -> None:
    torch.manual_seed(0)
    video, positive, negative = torch.randn(3, 4, 8)
    negative[3] = video[3]  # as near as it gets
    expected = []
    for v, p, n in zip(video, positive, negative, strict=True):
        v, p, n = (0.5 * x / x.norm() for x in (v, p, n))
        near, far = float((v - p).norm()), float((v - n).norm())
        assert 0 <= near <= 1 and 0 <= far <= 1
        expected.append(near**2 + max(0.0, 0.99 - far) ** 2)
    torch.testing.assert_close(
        sync_distances(video, positive, negative), torch.tensor(expected), atol=1e-5, rtol=1e-5
    )
    video.requires_grad_()
    sync_distances(video, positive, video.detach().clone()).sum().backward()
    assert video.grad is not None and video.grad.isfinite().all()


def test_opposite_pairs_give_the_bounds() -> None:
    """Same direction: distance 0. Opposite: 1, beyond the margin."""
    x = torch.tensor([[3.0, 0.0]])
    assert float(sync_distances(x, x, -x)) == pytest.approx(0)
    assert float(sync_distances(x, -x, x)) == pytest.approx(1 + 0.99**2, abs=1e-4)


@pytest.mark.parametrize("progress", [0.2, 0.9])
def test_the_loss_by_a_loop(progress: float) -> None:
    loss, values = make_loss(), streams(40)
    values["usable"][[4, 30]] = False
    actual = loss_of(loss, values, progress)
    torch.manual_seed(3)
    pairs = draw_pairs(values["ids"], values["usable"], FRAMES, progress)
    video = loss.video_head(values["video"])
    audio = loss.audio_head(values["audio"])
    terms = []
    for row in range(40):
        if not values["usable"][row]:
            continue
        start, other = int(pairs.start[row]), int(pairs.negative[row])
        shifted = int(pairs.negative_start[row])
        v = loss.video_head.proj(video[row, start : start + WINDOW].mean(0))
        p = loss.audio_head.proj(audio[row, start : start + WINDOW].mean(0))
        n = loss.audio_head.proj(audio[other, shifted : shifted + WINDOW].mean(0))
        v, p, n = (0.5 * x / x.norm() for x in (v, p, n))
        near, far = float((v - p).norm().detach()), float((v - n).norm().detach())
        terms.append(near**2 + max(0.0, 0.99 - far) ** 2)
    assert float(actual.detach()) == pytest.approx(sum(terms) / (2 * len(terms)), rel=1e-4)


def many(progress: float) -> SyncPairs:
    torch.manual_seed(0)
    ids = torch.arange(1000) // 2  # two rows of each sample
    return draw_pairs(ids, torch.ones(1000, dtype=torch.bool), FRAMES, progress)


@pytest.mark.parametrize(("progress", "share"), [(0.0, 0.0), (0.49, 0.0), (0.5, 0.25), (1, 0.25)])
def test_the_curriculum(progress: float, share: float) -> None:
    pairs = many(progress)
    rows = torch.arange(1000)
    hard = pairs.negative == rows
    assert float(hard.float().mean()) == pytest.approx(share, abs=0.04)
    easy = ~hard
    assert (pairs.negative[easy] // 2 != rows[easy] // 2).all()  # of another sample
    assert pairs.valid.all()


def test_hard_negatives_have_all_places_beside_their_positive() -> None:
    pairs = many(1.0)
    hard = pairs.negative == torch.arange(1000)
    start, shifted = pairs.start[hard], pairs.negative_start[hard]
    assert ((start - shifted).abs() >= WINDOW).all()
    assert shifted.min() >= 0 and shifted.max() + WINDOW <= FRAMES
    drawn = set(zip(start.tolist(), shifted.tolist(), strict=True))
    places = range(FRAMES - WINDOW + 1)
    assert drawn == {(s, t) for s in places for t in places if abs(s - t) >= WINDOW}


@pytest.mark.parametrize("frames", [3, 4, 5, 16, 64])
def test_there_is_place_for_a_hard_negative_in_a_clip_of_any_length(frames: int) -> None:
    torch.manual_seed(0)
    usable = torch.ones(300, dtype=torch.bool)
    pairs = draw_pairs(torch.zeros(300, dtype=torch.int64), usable, frames, 1.0)
    hard = pairs.negative == torch.arange(300)
    hard &= pairs.valid  # all are of one sample: the others have no negative
    window = frames // 3
    assert hard.any()
    assert ((pairs.start - pairs.negative_start).abs()[hard] >= window).all()
    for first in (pairs.start[hard], pairs.negative_start[hard]):
        assert first.min() >= 0 and first.max() + window <= frames


def test_windows_by_a_loop() -> None:
    x = torch.randn(3, 24, 2)
    windows = windows_of(x, torch.tensor([2, 0]), torch.tensor([1, 3]), 2, 4)
    assert torch.equal(windows[0], x[2, 4:12])
    assert torch.equal(windows[1], x[0, 12:20])


def test_pairs_are_of_the_same_id_in_whatever_order_rows_come() -> None:
    loss, values = make_loss(), streams(5)
    expected = loss_of(loss, values, 0.9)
    order = torch.tensor([3, 1, 4, 0, 2])
    for name in ("audio", "log_mel", "audio_ids"):
        values[name] = values[name][order]
    assert torch.equal(loss_of(loss, values, 0.9), expected)
    values["audio_ids"] = torch.arange(5)
    assert not torch.isclose(loss_of(loss, values, 0.9), expected)


def changed(name: str, row: int) -> dict[str, Tensor]:
    """Streams in which a stream of a row that should not count is another."""
    values = streams()
    values[name][row] = torch.randn_like(values[name][row])
    return values


def test_near_silent_clips_do_not_count() -> None:
    loss, values = make_loss(), streams()
    values["log_mel"][0] = -12 + 0.09 * torch.randn(FRAMES * STEPS, 7)  # variance 0.0081
    base = loss_of(loss, values, 0.0)
    for name in ("video", "audio"):  # as its positive and as a negative
        other = changed(name, 0) | {"log_mel": values["log_mel"]}
        assert torch.equal(loss_of(loss, other, 0.0), base)
    louder = values | {"log_mel": values["log_mel"].clone()}
    louder["log_mel"][0] *= 1.3  # variance 0.0137
    assert not torch.equal(loss_of(loss, louder, 0.0), base)


def test_the_same_audio_is_no_negative() -> None:
    """Two clips with the same constant spectrogram, the third is not usable."""
    loss, values = make_loss(), streams()
    values["usable"][2] = False
    mel = torch.arange(7.0).expand(FRAMES * STEPS, 7)
    values["log_mel"] = torch.stack([mel, mel, -mel])
    result = loss_of(loss, values, 0.0)
    assert float(result.detach()) == 0
    values["log_mel"][1, :, 0] = 2
    assert loss_of(loss, values, 0.0) > 0


@pytest.mark.parametrize("progress", [0.0, 0.9])
@pytest.mark.parametrize("kind", ["silent", "single", "unusable"])
def test_without_a_pair_the_loss_is_a_finite_0(kind: str, progress: float) -> None:
    loss = make_loss()
    values = streams(1 if kind == "single" else 3)
    if kind == "silent":
        values["log_mel"][:] = -15.9
    elif kind == "unusable":
        values["usable"][:] = False
    for seed in range(6):
        result = loss_of(loss, values, progress, seed)
        result.backward()
        assert result.isfinite()
        if kind != "single" or progress == 0:
            assert float(result.detach()) == 0
    for name, weight in loss.named_parameters():
        assert weight.grad is not None and weight.grad.isfinite().all(), name
    if kind == "single" and progress > 0:  # hard negatives need no other clip
        assert loss.audio_head.conv.weight.grad is not None
        assert loss.audio_head.conv.weight.grad.any()


def test_synchronised_streams_are_learned() -> None:
    """Both modalities carry the same signal: after training, positives are nearer by far."""
    torch.manual_seed(0)
    signal = torch.randn(12, FRAMES, 1)
    values = streams(12)
    values["video"] = signal * torch.randn(6)
    values["audio"] = signal * torch.randn(5)
    loss = make_loss()
    optimizer = torch.optim.Adam(loss.parameters(), 1e-2)
    first = float(loss_of(loss, values, 0.9).detach())
    for step in range(30):
        optimizer.zero_grad()
        loss_of(loss, values, 0.9, seed=step).backward()
        optimizer.step()
    assert float(loss_of(loss, values, 0.9).detach()) < first / 2
