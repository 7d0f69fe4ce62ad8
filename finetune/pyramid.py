"""A map of features at a quarter of the frame's size, out of tokens of patches of 16 pixels.

A simple pyramid on the last tokens of a plain ViT (Li et al., ECCV 2022), and the pixels
themselves beside it: tokens say what is where, pixels where exactly it ends.
"""

from torch import Tensor, nn
from torch.nn import functional

from cavmae.finetune.motion import groups_of
from cavmae.pretrain.positions import Grid


class Pyramid(nn.Module):
    """Tokens and frames to a map at a quarter of the size.

    Args:
        width: of a token.
        channels: of the map.
        grid: rows and columns of tokens.
    """

    def __init__(self, width: int, channels: int, grid: Grid):
        super().__init__()
        self.grid = grid
        self.up1 = nn.ConvTranspose2d(width, 2 * channels, 2, stride=2)
        self.norm1 = nn.GroupNorm(groups_of(2 * channels), 2 * channels)
        self.up2 = nn.ConvTranspose2d(2 * channels, channels, 2, stride=2)
        self.pixels = nn.Conv2d(3, channels, 7, stride=4, padding=3)
        self.norm2 = nn.GroupNorm(groups_of(channels), channels)
        self.out = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, tokens: Tensor, frames: Tensor) -> Tensor:
        """The map of each frame.

        Args:
            tokens: [M, rows * columns, width].
            frames: [M, 3, 16 rows, 16 columns], normalised.

        Returns:
            [M, channels, 4 rows, 4 columns].
        """
        x = tokens.transpose(1, 2).unflatten(2, self.grid)
        x = self.up2(functional.gelu(self.norm1(self.up1(x))))
        found: Tensor = self.out(functional.gelu(self.norm2(x + self.pixels(frames))))
        return found
