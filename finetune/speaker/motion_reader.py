"""Motion of each slot: features under its mask, and the articulation cue read from them.

Shapes: N clips, T frames of h x w pixels, C channels, Q slots, F key frames, D width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

STILL = 0.02  # standard deviation in time below which a mean over a mask counts as still


class ArticulationHead(nn.Module):
    """Articulation cue (opening, spread, teeth, tongue) of each slot's motion, by convolutions.

    Args:
        width: D.
        channels: of a cue.
    """

    def __init__(self, width: int, channels: int):
        super().__init__()
        self.convs = nn.Sequential(
            nn.Conv1d(width, width, 5, padding=2), nn.GELU(),
            nn.Conv1d(width, width, 5, padding=4, dilation=2), nn.GELU(),
            nn.Conv1d(width, channels, 1),
        )  # fmt: skip

    def forward(self, motion: Tensor) -> Tensor:
        """Cues of motion: [N, Q, T, D] -> [N, Q, T, channels]."""
        cues: Tensor = self.convs(motion.flatten(0, 1).transpose(1, 2))
        return cues.transpose(1, 2).unflatten(0, motion.shape[:2])


class MotionReader(nn.Module):
    """Motion under each slot's mask, which binds a voice to pixels.

    Each head is a weighted mean over the mask's pixels. The weights are learned from the motion
    itself, since lips contribute little to a plain mean over a body. Each mean is standardised in
    time, since lips change it little compared with the body's appearance. Without that, lip motion
    was not learned in the first thousand scenes.

    Args:
        channels: C.
        width: D.
        heads: weighted means.
    """

    def __init__(self, channels: int, width: int, heads: int = 4):
        super().__init__()
        self.score = nn.Linear(channels, heads)
        nn.init.zeros_(self.score.weight)  # plain means initially
        self.proj = nn.Linear(heads * channels, width)

    def forward(self, motion: Tensor, masks: Tensor) -> Tensor:
        """Motion embedding of each slot in each frame.

        Args:
            motion: [N, T, C, h, w].
            masks: [N, Q, F, h', w'], 0 to 1, of key frames spread evenly over the T frames.

        Returns:
            [N, Q, T, D].
        """
        # Sums over thousands of pixels and small changes in time need more than half precision.
        with torch.autocast(motion.device.type, enabled=False):
            means = self._means(motion.float(), masks.float())
        embed: Tensor = self.proj(means.to(self.proj.weight.dtype)).transpose(1, 2)
        # An empty mask has no motion.
        return embed * masks.flatten(2).amax(-1)[..., None, None].to(embed.dtype)

    def _means(self, motion: Tensor, masks: Tensor) -> Tensor:
        """Means under masks, standardised in time: [N, T, Q, heads * C]."""
        n, t, _, h, w = motion.shape
        slots, keys = masks.shape[1:3]
        masks = functional.adaptive_avg_pool2d(masks.flatten(0, 1), (h, w))
        masks = masks.unflatten(0, (n, slots)).flatten(3).transpose(1, 2)  # [N, F, Q, h w]
        pixels = motion.flatten(3)  # [N, T, C, h w]
        score = self.score.weight @ pixels + self.score.bias[:, None]
        weight = (score - score.amax(-1, keepdim=True)).exp()  # [N, T, heads, h w]
        # Masks are interpolated between key frames: a step would look like motion.
        position = (torch.arange(t, device=motion.device) + 0.5) * keys / t - 0.5
        position = position.clamp(0, keys - 1)
        previous = position.long().clamp(max=max(0, keys - 2))
        fraction = (position - previous)[:, None, None]
        following = (previous + 1).clamp(max=keys - 1)
        masks = torch.lerp(masks[:, previous], masks[:, following], fraction)  # [N, T, Q, h w]
        weight = weight[:, :, None] * (masks + 1e-6)[:, :, :, None]  # [N, T, Q, heads, h w]
        values = pixels.mT
        # The channel of ones sums to the total weight: [N, T, h w, C + 1].
        values = functional.pad(values, (0, 1), value=1.0)
        sums = (weight.flatten(2, 3) @ values).unflatten(2, (slots, -1))
        means = (sums[..., :-1] / sums[..., -1:]).flatten(3)  # [N, T, Q, heads * C]
        means = means - means.mean(1, keepdim=True)
        spread = (means.square().mean(1, keepdim=True) + STILL**2).sqrt()
        return means / spread
