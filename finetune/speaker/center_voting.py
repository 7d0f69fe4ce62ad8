"""Center voting: each pixel votes for its person's center, and each slot gathers nearby votes.

People in a frame differ above all in position. Slots with identical initial positions learn that
slowly from few scenes, so their centers are initialised side by side. Votes and their Gaussian
kernel follow Neven et al. (CVPR 2019); the update of centers is mean shift.

Shapes: N clips, F key frames, C channels, H x W pixels, Q slots, D width.
"""

import torch
from torch import Tensor, nn

STRENGTH = 3.0  # initial logit at a slot's center; its negative is the logit far away
WIDE, HIGH = 0.12, 0.35  # initial standard deviations, as fractions of the frame


class CenterVoting(nn.Module):
    """Gaussian of each slot in the space of votes, centered on the votes under the slot's mask.

    Args:
        width: D.
        channels: C of the feature map that votes are read from.
        slots: Q; their initial centers are spread evenly from left to right.
    """

    def __init__(self, width: int, channels: int, slots: int):
        super().__init__()
        across = (torch.arange(slots) + 0.5) / slots
        # One-dimensional parameters have no weight decay, which would pull centers to a corner.
        centers = torch.stack([across, torch.full_like(across, 0.6)], dim=1)
        self.initial_centers = nn.Parameter(centers.flatten())
        self.offset = nn.Conv2d(channels, 2, 1)
        self.gaussian_head = nn.Linear(width, 4)
        self.strength = nn.Parameter(torch.full((1,), STRENGTH))
        for parameter in (*self.offset.parameters(), *self.gaussian_head.parameters()):
            nn.init.zeros_(parameter)

    def votes(self, features: Tensor) -> Tensor:
        """Center (x, y) that each pixel votes for, as fractions of the frame.

        Args:
            features: [N, F, C, H, W].

        Returns:
            [N, 2, F, H, W]; initially each pixel's own position.
        """
        offset = self.offset(features.flatten(0, 1)).unflatten(0, features.shape[:2]).float()
        height, width = features.shape[-2:]
        y = (torch.arange(height, device=features.device) + 0.5) / height
        x = (torch.arange(width, device=features.device) + 0.5) / width
        position = torch.stack([x.expand(height, -1), y[:, None].expand(-1, width)])
        return (position + offset).transpose(1, 2)

    def forward(self, slots: Tensor, votes: Tensor, previous: Tensor | None) -> Tensor:
        """Mask logits of votes: [N, Q, F, H, W].

        Args:
            slots: [N, Q, D].
            votes: of :meth:`votes`.
            previous: [N, Q, F, H, W], mask logits of the layer before: a center is the mean of the
                votes under them. None: it is the initial center.
        """
        with torch.autocast(slots.device.type, enabled=False):
            return self._vote_logits(self.gaussian_head(slots.float()), votes, previous)

    def _vote_logits(self, params: Tensor, votes: Tensor, previous: Tensor | None) -> Tensor:
        """Logits of Gaussians whose shift of center and log size are params [N, Q, 4]."""
        centers = self.initial_centers.view(-1, 2).expand(len(params), -1, -1)
        if previous is not None:
            mask_prob = previous.float().sigmoid()  # [N, Q, F, H, W]
            total = mask_prob.flatten(2).sum(-1)[..., None] + 1e-3
            centers = torch.einsum("nqfhw,ncfhw->nqc", mask_prob, votes) / total
        centers = centers + params[..., :2]
        size = torch.tensor([WIDE, HIGH], device=params.device) * params[..., 2:].clamp(-2, 2).exp()
        sq_distance = torch.zeros_like(votes[:, :1]).expand(-1, params.shape[1], -1, -1, -1)
        # Axes of sq_distance and of offset: [N, Q, F, H, W].
        for axis in range(2):
            offset = votes[:, axis, None] - centers[:, :, axis, None, None, None]
            sq_distance = sq_distance + (offset / size[:, :, axis, None, None, None]).square()
        return self.strength * (2 * (-sq_distance / 2).exp() - 1)
