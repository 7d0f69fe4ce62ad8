"""Event classification on the encoder of CAV-MAE (Gong et al., ICLR 2023, section 3.3)."""

from typing import Literal

import torch
from torch import Tensor, nn

from cavmae.pretrain.blocks import NORM_EPS
from cavmae.pretrain.encoder import CAVMAEConfig, Encoder
from cavmae.pretrain.hub import HubWeights

Mode = Literal["multimodal", "audioonly", "videoonly", "missingaudioonly", "missingvideoonly"]


class EventClassifier(Encoder, HubWeights, library_name="cavmae", tags=["audio-visual"]):
    """The encoder and a linear head on the mean token.

    Args:
        shape: of the encoder; what it says of a decoder is not used.
        classes: how many there are.
    """

    def __init__(self, shape: CAVMAEConfig, classes: int):
        super().__init__(shape)
        self.mlp_head = nn.Sequential(
            nn.LayerNorm(shape.width, eps=NORM_EPS), nn.Linear(shape.width, classes)
        )
        self.initialise()

    def forward(self, audio: Tensor, image: Tensor, mode: Mode = "multimodal") -> Tensor:
        """Logits [N, classes].

        Args:
            audio: normalised fbanks [N, frames, mel].
            image: normalised frames [N, 3, H, W].
            mode: ``multimodal``: both together. ``audioonly``, ``videoonly``: a model that was
                fine-tuned on one modality. ``missingaudioonly``, ``missingvideoonly``: a model that
                was fine-tuned on both and gets this one alone; its passes with the norms of both
                and with those of the modality are averaged.
        """
        a, v = self.patchify(audio, image)
        if mode == "multimodal":
            both = [self.forward_branch(a, "a"), self.forward_branch(v, "v")]
            x = self.forward_joint(torch.cat(both, dim=1), None)
        else:
            modality: Literal["a", "v"] = "a" if "audio" in mode else "v"
            branch = self.forward_branch(a if modality == "a" else v, modality)
            x = self.forward_joint(branch, modality)
            if mode.startswith("missing"):
                x = (x + self.forward_joint(branch, None)) / 2
        logits: Tensor = self.mlp_head(x.mean(dim=1))
        return logits
