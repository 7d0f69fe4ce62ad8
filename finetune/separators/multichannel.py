"""Linear map and norm of several channels, each with weights of its own.

After the third of the frame transformers (https://github.com/carperbr/frame-transformer).
Shapes: N mixtures, C channels, T' frames, F features of a frame.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional


class MultichannelLinear(nn.Module):
    """Linear map of each channel's features, then a linear map of the channels; no biases.

    Args:
        in_channels: C.
        out_channels: C'.
        in_features: F.
        out_features: F'.
    """

    def __init__(self, in_channels: int, out_channels: int, in_features: int, out_features: int):
        super().__init__()
        weight = torch.empty(in_channels, out_features, in_features)
        self.weight = nn.Parameter(nn.init.uniform_(weight, -1, 1) * in_features**-0.5)
        mixing = torch.empty(out_channels, in_channels)
        self.mixing = nn.Parameter(nn.init.uniform_(mixing, -1, 1) * (3 / in_channels) ** 0.5)

    def forward(self, x_nctf: Tensor) -> Tensor:
        """[N, C, T', F] -> [N, C', T', F']."""
        x = torch.einsum("nctf,cgf->nctg", x_nctf, self.weight)
        return torch.einsum("nctg,dc->ndtg", x, self.mixing)


class MultichannelLayerNorm(nn.Module):
    """Layer norm over the features of a frame, with a weight and a bias for each channel.

    Args:
        channels: C.
        features: F.
    """

    def __init__(self, channels: int, features: int):
        super().__init__()
        self.features = features
        # With a leading axis of 1 they are vectors to the optimizer: no weight decay.
        self.weight = nn.Parameter(torch.ones(1, channels, features))
        self.bias = nn.Parameter(torch.zeros(1, channels, features))

    def forward(self, x_nctf: Tensor) -> Tensor:
        """[N, C, T', F], of the same shape."""
        x = functional.layer_norm(x_nctf, (self.features,))
        return x * self.weight[:, :, None] + self.bias[:, :, None]
