"""Every entry of the table of separators keeps what the seam promises."""

import pytest
import torch

from cavmae.common.errors import UsageError
from cavmae.finetune.separators import SEPARATORS, build_separator
from cavmae.finetune.separators.base import STEP, at_spectrum_rate
from cavmae.finetune.speaker.stft import BINS

WIDTH, FRAMES = 12, 64


@pytest.fixture(params=sorted(SEPARATORS))
def name(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


def test_shapes(name: str) -> None:
    one = build_separator(name, WIDTH, 8)
    x = torch.randn(2, 2, BINS, FRAMES)
    heard = one.encode_mixture(x)
    assert heard.latent.shape == (2, FRAMES // STEP, one.latent_width)
    voices = torch.randn(2, 3, FRAMES // STEP, WIDTH)
    assert one.estimate_masks(heard, voices).shape == (2, 3, 2, BINS, FRAMES)
    assert one.fusion in ("query", "concat")


def test_a_voice_does_not_depend_on_the_others(name: str) -> None:
    one = build_separator(name, WIDTH, 8).eval()
    x = torch.randn(1, 2, BINS, FRAMES)
    voices = torch.randn(1, 3, FRAMES // STEP, WIDTH)
    together = one(x, voices)
    torch.testing.assert_close(one(x, voices[:, 1:2]), together[:, 1:2], atol=1e-4, rtol=1e-3)
    order = [2, 0, 1]
    torch.testing.assert_close(one(x, voices[:, order]), together[:, order], atol=1e-4, rtol=1e-3)


def test_different_voices_get_different_masks_that_may_be_negative(name: str) -> None:
    torch.manual_seed(0)
    one = build_separator(name, WIDTH, 8)
    x = torch.randn(1, 2, BINS, FRAMES)
    masks = one(x, torch.randn(1, 2, FRAMES // STEP, WIDTH))
    assert not torch.allclose(masks[:, 0], masks[:, 1], atol=1e-4)
    assert masks.min() < 0 < masks.max()


def test_what_is_known_of_a_voice_counts_at_its_time(name: str) -> None:
    """Of the last quarter's embedding, the first eighth of the mask knows (almost) nothing."""
    torch.manual_seed(0)
    one = build_separator(name, WIDTH, 8).eval()
    x = torch.randn(1, 2, BINS, 128)
    voices = torch.randn(1, 1, 32, WIDTH)
    other = voices.clone()
    other[:, :, 24:] += torch.randn(8, WIDTH)
    change = (one(x, other) - one(x, voices)).abs().amax(dim=(0, 1, 2, 3))
    assert change[100:].max() > 1.5 * change[:16].max()


def test_every_weight_gets_a_gradient(name: str) -> None:
    """DDP waits for those that get none."""
    one = build_separator(name, WIDTH, 8)
    heard = one.encode_mixture(torch.randn(2, 2, BINS, FRAMES))
    masks = one.estimate_masks(heard, torch.randn(2, 2, FRAMES // STEP, WIDTH))
    (masks.square().mean() + heard.latent.square().mean()).backward()
    for key, parameter in one.named_parameters():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key


def test_a_separator_can_learn_to_single_out_what_it_is_told(name: str) -> None:
    """Told 0 or 1 it learns to mask the upper or the lower half of the bins."""
    torch.manual_seed(0)
    one = build_separator(name, WIDTH, 16)
    frames = max(16, one.least_frames)
    told = torch.zeros(2, 1, frames // STEP, WIDTH)
    told[1] = 1.0
    x = torch.randn(1, 2, BINS, frames).expand(2, -1, -1, -1)
    wanted = torch.zeros(2, 1, 2, BINS, frames)
    wanted[0, :, 0, : BINS // 2] = 1
    wanted[1, :, 0, BINS // 2 :] = 1
    optimizer = torch.optim.Adam(one.parameters(), 1e-3)
    losses = []
    for _ in range(90):
        loss = (one(x, told) - wanted).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    assert losses[-1] < 0.35 * losses[0]


def test_rates_meet() -> None:
    voices = torch.arange(4.0)[None, None, :, None]
    found = at_spectrum_rate(voices, 16)
    assert found.shape == (1, 1, 1, 16)
    assert found[0, 0, 0].diff().min() >= 0
    assert float(found[0, 0, 0, 6:10].mean()) == pytest.approx(1.5)


def test_one_that_is_not_in_the_table() -> None:
    with pytest.raises(UsageError, match="unet"):
        build_separator("wavenet", WIDTH, 8)
