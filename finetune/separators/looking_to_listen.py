"""Looking to Listen (Ephrat et al., SIGGRAPH 2018, arXiv 1804.03619): the baseline, by `concat`.

15 dilated convolutions on the spectrum; 6 on each voice's embedding over time, shared by all; both
laid side by side, a bidirectional LSTM, three fully connected layers, a complex mask. The authors'
numbers are those of a width of 96 channels. Two departures: each voice is extracted by a pass of
its own, so that any number can be asked for; the mask is bounded by a tanh, since a sigmoid cannot
give negative values.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from cavmae.finetune.separators.base import STEP, MaskEstimator, MixtureFeatures, at_spectrum_rate
from cavmae.finetune.speaker.motion import groups_of
from cavmae.finetune.speaker.stft import BINS

# (kernel, dilation) of both axes (bins, frames) of the convolutions on the spectrum.
AUDIO = (
    ((1, 7), (1, 1)), ((7, 1), (1, 1)),
    *(((5, 5), (1, d)) for d in (1, 2, 4, 8, 16, 32)),
    *(((5, 5), (d, d)) for d in (1, 2, 4, 8, 16, 32)),
)  # fmt: skip
LAST = 8  # channels of the fifteenth
VISUAL = ((7, 1), (5, 1), (5, 2), (5, 4), (5, 8), (5, 16))  # (kernel, dilation) over time


class LookingToListen(MaskEstimator):
    """See above.

    Args:
        width: D.
        channels: of a convolution on the spectrum (authors: 96). The others follow from it as the
            authors' do: 256 of the visual convolutions, 400 of the LSTM, 600 of the last layers.
    """

    fusion = "concat"

    def __init__(self, width: int, channels: int):
        super().__init__()
        visual, recurrent, full = (round(channels * n / 96) for n in (256, 400, 600))
        sizes = [2, *[channels] * len(AUDIO)]
        self.audio = nn.ModuleList()
        for before, (kernel, dilation) in zip(sizes, AUDIO, strict=False):
            padding = kernel[0] // 2 * dilation[0], kernel[1] // 2 * dilation[1]
            self.audio.append(
                nn.Sequential(
                    nn.Conv2d(before, channels, kernel, padding=padding, dilation=dilation),
                    nn.GroupNorm(groups_of(channels), channels),
                    nn.ReLU(),
                )
            )
        self.last = nn.Sequential(nn.Conv2d(channels, LAST, 1), nn.ReLU())
        self.visual = nn.ModuleList()
        for number, (size, step) in enumerate(VISUAL):
            self.visual.append(
                nn.Sequential(
                    nn.Conv1d(
                        visual if number else width, visual, size,
                        padding=size // 2 * step, dilation=step,
                    ),
                    nn.GroupNorm(groups_of(visual), visual),
                    nn.ReLU(),
                )
            )  # fmt: skip
        self.lstm = nn.LSTM(LAST * BINS + visual, recurrent, batch_first=True, bidirectional=True)
        self.full = nn.Sequential(
            nn.Linear(2 * recurrent, full), nn.ReLU(),
            nn.Linear(full, full), nn.ReLU(),
            nn.Linear(full, full), nn.ReLU(),
            nn.Linear(full, 2 * BINS),
        )  # fmt: skip
        self.latent_width = 4 * width
        self.flatten = nn.Linear(LAST * BINS, self.latent_width)

    def encode_mixture(self, spectrum: Tensor) -> MixtureFeatures:
        """See :meth:`MaskEstimator.encode_mixture`. Features: [N, T, 8 B]."""
        x = spectrum
        for layer in self.audio:
            x = layer(x)
        features = self.last(x).flatten(1, 2).transpose(1, 2)
        slow = functional.avg_pool1d(features.transpose(1, 2), STEP).transpose(1, 2)
        return MixtureFeatures(self.flatten(slow), features)

    def estimate_masks(self, heard: MixtureFeatures, voices: Tensor) -> Tensor:
        """See :meth:`MaskEstimator.estimate_masks`."""
        n, k = voices.shape[:2]
        x = voices.flatten(0, 1).transpose(1, 2)
        for layer in self.visual:
            x = layer(x)
        frames = heard.features.shape[1]
        seen = at_spectrum_rate(x.transpose(1, 2).unflatten(0, (n, k)), frames).transpose(2, 3)
        both = torch.cat([heard.features[:, None].expand(-1, k, -1, -1), seen], dim=-1)
        found = self.full(self.lstm(both.flatten(0, 1))[0])  # [N K, T, 2 B]
        masks: Tensor = found.unflatten(2, (2, BINS)).permute(0, 2, 3, 1).unflatten(0, (n, k))
        return masks
