"""Which pixels belong together: each votes for the middle of its person, and slots gather votes.

People in a picture differ above all in where they are. Slots that begin alike learn that slowly
from few scenes; slots that begin side by side, among pixels that say where their person's middle
is, do not have to. Votes and their Gaussian gathering are those of Neven et al. (CVPR 2019), the
moving places those of mean shift.
"""

import torch
from torch import Tensor, nn

STRENGTH = 3.0  # logit at a place's middle, and its negative far away, at first
WIDE, HIGH = 0.12, 0.35  # of a place, at first, as shares of the picture


class CenterVoting(nn.Module):
    """A slot's place: a Gaussian in the space of votes, which moves with the slot's mask.

    Args:
        width: D of a slot.
        channels: of the map that pixels vote by.
        slots: whose places begin evenly spread from left to right.
    """

    def __init__(self, width: int, channels: int, slots: int):
        super().__init__()
        across = (torch.arange(slots) + 0.5) / slots
        # A vector, so that no decay of weights pulls places to a corner.
        places = torch.stack([across, torch.full_like(across, 0.6)], dim=1)
        self.start = nn.Parameter(places.flatten())
        self.offset = nn.Conv2d(channels, 2, 1)
        self.move = nn.Linear(width, 4)
        self.strength = nn.Parameter(torch.full((1,), STRENGTH))
        for parameter in (*self.offset.parameters(), *self.move.parameters()):
            nn.init.zeros_(parameter)

    def votes(self, map_: Tensor) -> Tensor:
        """Where each pixel says its person's middle is: x and y, as shares of the picture.

        Args:
            map_: [N, F, C, H, W].

        Returns:
            [N, 2, F, H, W]; at first each pixel's own place.
        """
        offset = self.offset(map_.flatten(0, 1)).unflatten(0, map_.shape[:2]).float()
        height, width = map_.shape[-2:]
        y = (torch.arange(height, device=map_.device) + 0.5) / height
        x = (torch.arange(width, device=map_.device) + 0.5) / width
        own = torch.stack([x.expand(height, -1), y[:, None].expand(-1, width)])
        return (own + offset).transpose(1, 2)

    def forward(self, slots: Tensor, votes: Tensor, before: Tensor | None) -> Tensor:
        """What is added to the logits of masks: [N, Q, F, H, W].

        Args:
            slots: [N, Q, D].
            votes: of :meth:`votes`.
            before: [N, Q, F, H, W], logits of the masks before: a place moves to the mean of their
                votes. None: it is where it begins.
        """
        with torch.autocast(slots.device.type, enabled=False):
            return self._near(self.move(slots.float()), votes, before)

    def _near(self, moved: Tensor, votes: Tensor, before: Tensor | None) -> Tensor:
        centre = self.start.view(-1, 2).expand(len(moved), -1, -1)
        if before is not None:
            chance = before.float().sigmoid()
            total = chance.flatten(2).sum(-1)[..., None] + 1e-3
            centre = torch.einsum("nqfhw,ncfhw->nqc", chance, votes) / total
        centre = centre + moved[..., :2]
        size = torch.tensor([WIDE, HIGH], device=moved.device) * moved[..., 2:].clamp(-2, 2).exp()
        far = torch.zeros_like(votes[:, :1]).expand(-1, moved.shape[1], -1, -1, -1)
        for axis in range(2):
            apart = votes[:, axis, None] - centre[:, :, axis, None, None, None]
            far = far + (apart / size[:, :, axis, None, None, None]).square()
        return self.strength * (2 * (-far / 2).exp() - 1)
