"""The fast pathway: what moves, at 25 frames a second, and what moves of each person.

Shapes: N clips, T frames in grey of h x w pixels, C channels, Q slots, F key frames.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

STRIDE = 4
GREY_MEAN, GREY_STD = 110.0, 60.0  # of bytes, roughly those of pictures of people
GAIN = 4.0  # of what changes from frame to frame, which is small beside what is there
STILL = 0.02  # a mean over a mask that varies by less than this in time is taken as still


def groups_of(channels: int) -> int:
    """How many groups of channels are normalised: of 8 each, or somewhat more."""
    return next(count for count in range(max(1, channels // 8), 0, -1) if channels % count == 0)


class TimeBlock(nn.Module):
    """A residual 3-D convolution, taken apart: over time, then over space.

    Args:
        channels: C.
        dilation: of the kernel of 3 frames.
    """

    def __init__(self, channels: int, dilation: int):
        super().__init__()
        self.norm = nn.GroupNorm(groups_of(channels), channels)
        self.time = nn.Conv2d(
            channels, channels, (3, 1), padding=(dilation, 0), dilation=(dilation, 1)
        )
        self.space = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """[N * T, C, h, w] -> the same."""
        size = x.shape[-2:]
        y = functional.gelu(self.norm(x)).unflatten(0, (-1, frames)).transpose(1, 2)
        y = self.time(y.flatten(3)).transpose(1, 2).flatten(0, 1).unflatten(2, size)
        return x + self.space(functional.gelu(y))


class MotionPathway(nn.Module):
    """A small 3-D convolutional network over all frames in grey, of stride 4 in space.

    A ViT with patches of 16 at 3 key frames a second sees no lips; this pathway does. 3-D
    convolutions are written as 2-D ones, with frames as channels or as rows, which is the same
    mathematics and several times as fast on a CPU.

    Args:
        channels: C.
        blocks: of :class:`TimeBlock`, dilated by 1, 2, 1, 2, ...
    """

    def __init__(self, channels: int, blocks: int):
        super().__init__()
        first = max(8, channels // 2)
        self.stem = nn.Conv2d(3, first, 4, stride=2, padding=1)
        self.norm = nn.GroupNorm(groups_of(first), first)
        self.down = nn.Conv2d(first, channels, 3, stride=2, padding=1)
        self.blocks = nn.ModuleList(TimeBlock(channels, 1 + i % 2) for i in range(blocks))
        self.last = nn.GroupNorm(groups_of(channels), channels)

    def forward(self, frames: Tensor) -> Tensor:
        """uint8 [N, T, h, w] -> [N, T, C, h / 4, w / 4]."""
        x = (frames.to(self.stem.weight.dtype) - GREY_MEAN) / GREY_STD
        before = torch.cat([x[:, :1], x[:, :-1]], dim=1)
        after = torch.cat([x[:, 1:], x[:, -1:]], dim=1)
        # As it is, and what has changed and will change: a kernel of 3 frames in another basis.
        x = torch.stack([x, GAIN * (x - before), GAIN * (after - x)], dim=2).flatten(0, 1)
        x = self.down(functional.gelu(self.norm(self.stem(x))))
        for block in self.blocks:
            x = block(x, frames.shape[1])
        return functional.gelu(self.last(x)).unflatten(0, frames.shape[:2])


class MotionReader(nn.Module):
    """What moves under each slot's mask: this is what binds a voice to pixels.

    Several weighted means over the places of a mask. The weights are learned from the motion
    itself: a plain mean over a body would hold little of its lips. Of each mean only how it varies
    in time counts, at one size: lips change the mean over a body little, beside what the body
    looks like. Without this nothing moved by lips was learned in the first thousand scenes.

    Args:
        channels: C of the motion map.
        width: D of what comes out.
        heads: means.
    """

    def __init__(self, channels: int, width: int, heads: int = 4):
        super().__init__()
        self.score = nn.Linear(channels, heads)
        nn.init.zeros_(self.score.weight)  # plain means, at first
        self.proj = nn.Linear(heads * channels, width)

    def forward(self, motion: Tensor, masks: Tensor) -> Tensor:
        """Motion of each slot.

        Args:
            motion: [N, T, C, h, w].
            masks: [N, Q, F, h', w'], 0 to 1, of key frames spread evenly over the T frames.

        Returns:
            [N, Q, T, D].
        """
        # Sums over thousands of places, and how little changes in time: not in half precision.
        with torch.autocast(motion.device.type, enabled=False):
            means = self._means(motion.float(), masks.float())
        found: Tensor = self.proj(means.to(self.proj.weight.dtype)).transpose(1, 2)
        # Under a mask of nothing, nothing moves.
        return found * masks.flatten(2).amax(-1)[..., None, None].to(found.dtype)

    def _means(self, motion: Tensor, masks: Tensor) -> Tensor:
        """[N, T, Q, heads * C]."""
        n, t, _, h, w = motion.shape
        slots, keys = masks.shape[1:3]
        masks = functional.adaptive_avg_pool2d(masks.flatten(0, 1), (h, w))
        masks = masks.unflatten(0, (n, slots)).flatten(3).transpose(1, 2)  # [N, F, Q, places]
        flat = motion.flatten(3)  # [N, T, C, places]
        score = self.score.weight @ flat + self.score.bias[:, None]
        weight = (score - score.amax(-1, keepdim=True)).exp()  # [N, T, heads, places]
        # Between key frames masks change little by little: a step would look like a movement.
        place = ((torch.arange(t, device=motion.device) + 0.5) * keys / t - 0.5).clamp(0, keys - 1)
        before = place.long().clamp(max=max(0, keys - 2))
        part = (place - before)[:, None, None]
        masks = torch.lerp(masks[:, before], masks[:, (before + 1).clamp(max=keys - 1)], part)
        weight = weight[:, :, None] * (masks + 1e-6)[:, :, :, None]  # [N, T, Q, heads, places]
        values = flat.mT
        values = functional.pad(values, (0, 1), value=1.0)  # whose sum is that of the weights
        sums = (weight.flatten(2, 3) @ values).unflatten(2, (slots, -1))
        means = (sums[..., :-1] / sums[..., -1:]).flatten(3)  # [N, T, Q, heads * C]
        means = means - means.mean(1, keepdim=True)
        size = (means.square().mean(1, keepdim=True) + STILL**2).sqrt()
        return means / size
