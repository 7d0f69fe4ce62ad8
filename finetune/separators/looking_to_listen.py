"""Looking to Listen (Ephrat et al., SIGGRAPH 2018, arXiv 1804.03619).

15 dilated convolutions on the spectrum and 6 on each voice's embedding over time (with shared
weights), concatenation, a bidirectional LSTM, three fully connected layers, a complex mask. 96
channels give the layer sizes of the paper. There are two differences: each voice has a pass of its
own, so that the number of voices is variable; masks are bounded by a tanh, since a sigmoid has no
negative values.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from cavmae.finetune.separators.base import MixtureFeatures, VoiceSeparator
from cavmae.finetune.separators.layers import at_frame_rate, groups_of
from cavmae.finetune.separators.settings import LookingToListenOptions
from cavmae.finetune.separators.stft import BINS

# Kernels and dilations, along (bins, frames), of the convolutions on the spectrum.
AUDIO = (
    ((1, 7), (1, 1)), ((7, 1), (1, 1)),
    *(((5, 5), (1, d)) for d in (1, 2, 4, 8, 16, 32)),
    *(((5, 5), (d, d)) for d in (1, 2, 4, 8, 16, 32)),
)  # fmt: skip
STEP = 4  # STFT frames in a video frame of 40 ms
LAST = 8  # channels of the fifteenth convolution
VISUAL = ((7, 1), (5, 1), (5, 2), (5, 4), (5, 8), (5, 16))  # (kernel, dilation) over time


class LookingToListen(VoiceSeparator):
    """Separator of Looking to Listen; see the module's docstring.

    Args:
        options: of the entry.
        width: D.
    """

    def __init__(self, options: LookingToListenOptions, width: int):
        super().__init__()
        channels = options.width
        visual, recurrent, full = (round(channels * n / 96) for n in (256, 400, 600))
        sizes = [2, *[channels] * len(AUDIO)]
        self.audio = nn.ModuleList()
        for in_channels, (kernel, dilation) in zip(sizes, AUDIO, strict=False):
            padding = kernel[0] // 2 * dilation[0], kernel[1] // 2 * dilation[1]
            self.audio.append(
                nn.Sequential(
                    nn.Conv2d(in_channels, channels, kernel, padding=padding, dilation=dilation),
                    nn.GroupNorm(groups_of(channels), channels),
                    nn.ReLU(),
                )
            )
        self.last = nn.Sequential(nn.Conv2d(channels, LAST, 1), nn.ReLU())
        self.visual = nn.ModuleList()
        for index, (size, step) in enumerate(VISUAL):
            self.visual.append(
                nn.Sequential(
                    nn.Conv1d(
                        visual if index else width, visual, size,
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
        self.latent_proj = nn.Linear(LAST * BINS, self.latent_width)

    def encode_mixture(self, mixture: Tensor) -> MixtureFeatures:
        """See :meth:`VoiceSeparator.encode_mixture`; its features are [N, T', 8 B]."""
        x = mixture  # [N, 2, B, T'], T' a multiple of 4
        for layer in self.audio:
            x = layer(x)
        features = self.last(x).flatten(1, 2).transpose(1, 2)  # [N, T', 8 B]
        pooled = functional.avg_pool1d(features.transpose(1, 2), STEP).transpose(1, 2)
        return MixtureFeatures(self.latent_proj(pooled), features)

    def estimate(
        self, features: MixtureFeatures, voices: Tensor, visible: Tensor | None = None
    ) -> Tensor:
        """See :meth:`VoiceSeparator.estimate`."""
        n, k = voices.shape[:2]
        x = voices.flatten(0, 1).transpose(1, 2)
        for layer in self.visual:
            x = layer(x)  # [N K, visual channels, T]
        frames = features.map.shape[1]
        visual = at_frame_rate(x.transpose(1, 2).unflatten(0, (n, k)), frames).transpose(2, 3)
        # [N, K, T', 8 B + visual channels]
        fused = torch.cat([features.map[:, None].expand(-1, k, -1, -1), visual], dim=-1)
        output = self.full(self.lstm(fused.flatten(0, 1))[0])  # [N K, T', 2 B]
        masks: Tensor = output.unflatten(2, (2, BINS)).permute(0, 2, 3, 1).unflatten(0, (n, k))
        return masks
