"""Interface of fusions.

Shapes: N mixtures, K voices, C channels of the map, B bins, T' frames, T frames of 40 ms, D width
of a voice's embedding, P outputs.
"""

import abc

from torch import Tensor, nn


class Fusion(nn.Module, abc.ABC):
    """Fusion of a speaker-independent map with the embedding of each voice.

    The constructor takes the options of the entry, D, C and P.
    """

    @abc.abstractmethod
    def forward(self, x_ncbt: Tensor, voices: Tensor, visible: Tensor | None = None) -> Tensor:
        """Maps of the voices: [N, C, B, T'] -> [N, K, P, B, T'].

        Args:
            x_ncbt: map of the mixture.
            voices: [N, K, T, D], embedding of each voice, 25 times a second. The output of a voice
                does not depend on the other voices.
            visible: bool [N, K, T], frames of the embedding that may be attended to; None: all.
                Fusions without attention take the embedding as it is.
        """
