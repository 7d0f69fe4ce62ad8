"""Audio pathway of audiovisual SlowFast networks (Xiao et al., arXiv 2001.08740), and its lateral.

As in the paper: a stem of 9 x 1 then 1 x 9 (time x frequency), first stages of parallel 3 x 1 and
1 x 3, then standard convolutions; a lateral of the mean over frequency and two convolutions of 5
steps, the second with a stride to the rate of the target; DropPathway. Differences: there is no
stride in time, so that the lateral aligns audio with frames of 40 ms; three stages of a residual
block each instead of four of bottlenecks; norms of single steps instead of batch normalisation, as
batches are small, and a step must not see others but through convolutions.

Shapes: M clips, A steps of 10 ms, B mel bins, C channels.
"""

import random

import torch
from torch import Tensor, nn
from torch.nn import functional

from cavmae.finetune.separators.layers import groups_of

LATERAL_WIDTH = 64  # channels between the two convolutions of a lateral
TAPS = 5  # steps that each convolution of a lateral covers


class StepNorm(nn.GroupNorm):
    """Group normalisation of each time step alone: [M, C, A, ...] of the same shape.

    Args:
        channels: C.
    """

    def __init__(self, channels: int):
        super().__init__(groups_of(channels), channels)

    def forward(self, x: Tensor) -> Tensor:
        """Steps, normalised over channels of a group and over frequency."""
        steps = super().forward(x.transpose(1, 2).flatten(0, 1))
        return steps.unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2)


class AudioBlock(nn.Module):
    """Residual block on a map of time and frequency.

    Args:
        in_channels: of the input.
        channels: of the output.
        stride: in frequency.
        parallel: whether the first convolution is a 3 x 1 beside a 1 x 3, not a 3 x 3.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, parallel: bool):
        super().__init__()
        shapes = [(3, 1), (1, 3)] if parallel else [(3, 3)]
        self.norm = StepNorm(in_channels)
        self.convs = nn.ModuleList(
            nn.Conv2d(
                in_channels, channels, shape, (1, stride), padding=(shape[0] // 2, shape[1] // 2)
            )
            for shape in shapes
        )
        self.norm_out = StepNorm(channels)
        self.pointwise = nn.Conv2d(channels, channels, 1)
        self.skip = nn.Conv2d(in_channels, channels, 1, (1, stride))

    def forward(self, x: Tensor) -> Tensor:
        """[M, in_channels, A, B] -> [M, channels, A, ceil(B / stride)]."""
        normed = functional.relu(self.norm(x))
        y = self.convs[0](normed)
        for conv in self.convs[1:]:
            y = y + conv(normed)
        output: Tensor = self.skip(x) + self.pointwise(functional.relu(self.norm_out(y)))
        return output


class AudioPathway(nn.Module):
    """Convolutional network on fbanks that keeps all steps of 10 ms.

    Args:
        width: channels of the stem.

    Attributes:
        channels: C of the output, four times ``width``.
    """

    def __init__(self, width: int):
        super().__init__()
        self.channels = 4 * width
        self.stem_time = nn.Conv2d(1, width, (9, 1), padding=(4, 0))
        self.stem_frequency = nn.Conv2d(width, width, (1, 9), (1, 2), padding=(0, 4))
        self.blocks = nn.Sequential(
            AudioBlock(width, width, 1, parallel=True),
            AudioBlock(width, 2 * width, 2, parallel=True),
            AudioBlock(2 * width, 4 * width, 2, parallel=False),
        )
        self.norm = StepNorm(4 * width)

    def forward(self, fbank: Tensor) -> Tensor:
        """Features of normalised fbanks, as their mean over frequency: [M, A, B] -> [M, C, A]."""
        x = self.stem_frequency(self.stem_time(fbank[:, None]))
        return functional.relu(self.norm(self.blocks(x))).mean(3)


class AudioLateral(nn.Module):
    """Lateral connection from the audio pathway, to be added to features of another pathway.

    Args:
        channels: C of the audio pathway.
        out_channels: of the target.
        stride: audio steps of a frame of the target.
    """

    def __init__(self, channels: int, out_channels: int, stride: int):
        super().__init__()
        self.conv = nn.Conv1d(channels, LATERAL_WIDTH, TAPS, padding=TAPS // 2)
        self.norm = StepNorm(LATERAL_WIDTH)
        # Steps 4 t - 1 to 4 t + 3 for frame t at a stride of 4: as many outputs as frames.
        padding = max(0, (TAPS + 1 - stride) // 2)
        self.align = nn.Conv1d(LATERAL_WIDTH, out_channels, TAPS, stride, padding)
        self.norm_out = StepNorm(out_channels)

    def forward(self, audio: Tensor, gate: Tensor | None = None) -> Tensor:
        """Features [M, C, A] at the rate of the target: [M, A / stride, out_channels].

        Args:
            gate: float [M], factors of :func:`drop_pathway`; None: 1.
        """
        x = functional.relu(self.norm(self.conv(audio)))
        aligned = functional.relu(self.norm_out(self.align(x))).transpose(1, 2)
        return gated(aligned, gate)


def gated(x: Tensor, gate: Tensor | None) -> Tensor:
    """Features [M, ...] times the factors [M] of :func:`drop_pathway`; None: 1."""
    return x if gate is None else x * gate.to(x.dtype).view(-1, *[1] * (x.ndim - 1))


def drop_pathway(prob: float, seed: int, progress: float, keep: Tensor) -> Tensor:
    """Factors of the audio lateral of each clip in a training step (DropPathway): float [M].

    A single draw counts for the whole step: it depends on the seed and the progress only, so that
    all processes and all micro-batches of the step have the same. A resumed run repeats it.

    The audio pathway runs all the same, and its gradients are 0: DDP waits for every one of them.

    Args:
        prob: probability of 0, which stands for no audio.
        seed: of the run.
        progress: fraction of training that is done, different in each step.
        keep: bool [M], clips that keep their audio, as their target would be lost without it.
    """
    dropped = random.Random(f"drop pathway {seed} {progress!r}").random() < prob
    return keep.float() if dropped else torch.ones_like(keep, dtype=torch.float32)
