"""Event classification on the encoder of CAV-MAE (Gong et al., ICLR 2023, section 3.3)."""

from typing import Literal

import torch
from torch import Tensor, nn

from cavmae.finetune.events.config import EventConfig
from cavmae.pretrain.blocks import NORM_EPS
from cavmae.pretrain.encoder import Encoder
from cavmae.pretrain.engine.hub import HubWeights

Mode = Literal["multimodal", "audioonly", "videoonly", "missingaudioonly", "missingvideoonly"]


class EventClassifier(Encoder, HubWeights, library_name="cavmae", tags=["audio-visual"]):
    """CAV-MAE encoder with a linear head on the mean token.

    Args:
        config: of the model.
    """

    config_class = EventConfig
    model_type = "events"

    def __init__(self, config: EventConfig):
        super().__init__(config.encoder)
        self.config = config
        width = config.encoder.width
        self.mlp_head = nn.Sequential(
            nn.LayerNorm(width, eps=NORM_EPS), nn.Linear(width, config.classes)
        )
        self.initialise()

    def forward(self, audio: Tensor, image: Tensor, mode: Mode = "multimodal") -> Tensor:
        """Class logits [N, classes].

        Args:
            audio: normalised fbanks [N, frames, mel].
            image: normalised frames [N, 3, H, W].
            mode: ``multimodal``: both modalities. ``audioonly``, ``videoonly``: of a model that was
                fine-tuned on this modality. ``missingaudioonly``, ``missingvideoonly``: only this
                modality, of a model that was fine-tuned on both; the passes with the joint norms
                and with those of the modality are averaged.
        """
        a, v = self.patchify(audio, image)
        if mode == "multimodal":
            tokens = [self.forward_branch(a, "a"), self.forward_branch(v, "v")]
            x = self.forward_joint(torch.cat(tokens, dim=1), None)
        else:
            modality: Literal["a", "v"] = "a" if "audio" in mode else "v"
            branch = self.forward_branch(a if modality == "a" else v, modality)
            x = self.forward_joint(branch, modality)
            if mode.startswith("missing"):
                x = (x + self.forward_joint(branch, None)) / 2
        logits: Tensor = self.mlp_head(x.mean(dim=1))
        return logits
