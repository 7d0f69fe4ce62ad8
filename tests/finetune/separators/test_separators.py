"""Every registered separator fulfils the interface."""

import pytest
import torch

from cavmae.common.errors import UsageError
from cavmae.finetune.separators import SEPARATORS, build_separator
from cavmae.finetune.separators.base import STEP, at_spectrum_rate
from cavmae.finetune.separators.stft import BINS

WIDTH, FRAMES = 12, 64


@pytest.fixture(params=sorted(SEPARATORS))
def name(request: pytest.FixtureRequest) -> str:
    separator: str = request.param
    return separator


def test_shapes(name: str) -> None:
    separator = build_separator(name, WIDTH, 8)
    x = torch.randn(2, 2, BINS, FRAMES)
    features = separator.encode_mixture(x)
    assert features.latent.shape == (2, FRAMES // STEP, separator.latent_width)
    voices = torch.randn(2, 3, FRAMES // STEP, WIDTH)
    assert separator.estimate_masks(features, voices).shape == (2, 3, 2, BINS, FRAMES)
    assert separator.fusion in ("query", "concat")


def test_a_voice_does_not_depend_on_the_others(name: str) -> None:
    separator = build_separator(name, WIDTH, 8).eval()
    x = torch.randn(1, 2, BINS, FRAMES)
    voices = torch.randn(1, 3, FRAMES // STEP, WIDTH)
    together = separator(x, voices)
    torch.testing.assert_close(separator(x, voices[:, 1:2]), together[:, 1:2], atol=1e-4, rtol=1e-3)
    order = [2, 0, 1]
    torch.testing.assert_close(
        separator(x, voices[:, order]), together[:, order], atol=1e-4, rtol=1e-3
    )


def test_different_voices_get_different_masks_that_may_be_negative(name: str) -> None:
    torch.manual_seed(0)
    separator = build_separator(name, WIDTH, 8)
    x = torch.randn(1, 2, BINS, FRAMES)
    masks = separator(x, torch.randn(1, 2, FRAMES // STEP, WIDTH))
    assert not torch.allclose(masks[:, 0], masks[:, 1], atol=1e-4)
    assert masks.min() < 0 < masks.max()


def test_embeddings_count_at_their_time(name: str) -> None:
    """The embedding of the last quarter has almost no influence on the first eighth of the mask."""
    torch.manual_seed(0)
    separator = build_separator(name, WIDTH, 8).eval()
    x = torch.randn(1, 2, BINS, 128)
    voices = torch.randn(1, 1, 32, WIDTH)
    other = voices.clone()
    other[:, :, 24:] += torch.randn(8, WIDTH)
    change = (separator(x, other) - separator(x, voices)).abs().amax(dim=(0, 1, 2, 3))
    assert change[100:].max() > 1.5 * change[:16].max()


def test_every_weight_gets_a_gradient(name: str) -> None:
    """DDP waits for those that get none."""
    separator = build_separator(name, WIDTH, 8)
    features = separator.encode_mixture(torch.randn(2, 2, BINS, FRAMES))
    masks = separator.estimate_masks(features, torch.randn(2, 2, FRAMES // STEP, WIDTH))
    (masks.square().mean() + features.latent.square().mean()).backward()
    for key, parameter in separator.named_parameters():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key


def test_a_separator_learns_to_extract_what_its_embedding_says(name: str) -> None:
    """With an embedding of 0 or 1 it learns to mask the upper or the lower half of the bins."""
    torch.manual_seed(0)
    separator = build_separator(name, WIDTH, 16)
    frames = max(16, separator.least_frames)
    voices = torch.zeros(2, 1, frames // STEP, WIDTH)
    voices[1] = 1.0
    x = torch.randn(1, 2, BINS, frames).expand(2, -1, -1, -1)
    wanted = torch.zeros(2, 1, 2, BINS, frames)
    wanted[0, :, 0, : BINS // 2] = 1
    wanted[1, :, 0, BINS // 2 :] = 1
    optimizer = torch.optim.Adam(separator.parameters(), 1e-3)
    losses = []
    for _ in range(90):
        loss = (separator(x, voices) - wanted).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    assert losses[-1] < 0.35 * losses[0]


def test_rates_meet() -> None:
    voices = torch.arange(4.0)[None, None, :, None]
    resampled = at_spectrum_rate(voices, 16)
    assert resampled.shape == (1, 1, 1, 16)
    assert resampled[0, 0, 0].diff().min() >= 0
    assert float(resampled[0, 0, 0, 6:10].mean()) == pytest.approx(1.5)


def test_unknown_separator() -> None:
    with pytest.raises(UsageError, match="unet"):
        build_separator("wavenet", WIDTH, 8)
