"""Sound separator: a separation network told of each voice by an articulation cue.

Shapes: N mixtures, K voices, S samples, T = S / 640 frames of 40 ms, C channels of a cue, D width
of an embedding.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from cavmae.finetune.separation.config import SoundSeparatorConfig
from cavmae.finetune.separators.base import MixtureFeatures
from cavmae.finetune.separators.layers import groups_of
from cavmae.finetune.separators.settings import SEPARATORS
from cavmae.pretrain.engine.hub import HubWeights

DILATIONS = (1, 2, 4, 8)
LEAST_ACTIVITY = 1e-3  # of the residual: the sum of activities is never 0
FIRST_LOGIT = 2.0  # of activities before training: voices pass


class SeparatedVoices(NamedTuple):
    """Separated voices of mixtures.

    Attributes:
        spectra: complex [N, K + 1, 257, S / 160 + 1], the residual last; their sum is the mixture.
        activity_logits: [N, K + 1, T], the residual last.
    """

    spectra: Tensor
    activity_logits: Tensor


class ArticulationEncoder(nn.Module):
    """Embeddings of cues, aligned with the mixture: residual dilated convolutions over time.

    Args:
        config: of the model.
        latent_width: of the separator's latent.
    """

    def __init__(self, config: SoundSeparatorConfig, latent_width: int):
        super().__init__()
        width = config.width
        self.cue_proj = nn.Conv1d(config.cue_channels, width, 3, padding=1)
        self.latent_proj = nn.Linear(latent_width, width)
        self.convs = nn.ModuleList()
        for layer in range(config.cue_layers):
            dilation = DILATIONS[layer % len(DILATIONS)]
            self.convs.append(
                nn.Sequential(
                    nn.GroupNorm(groups_of(width), width), nn.GELU(),
                    nn.Conv1d(width, width, 3, padding=dilation, dilation=dilation),
                )
            )  # fmt: skip
        self.norm = nn.LayerNorm(width)

    def forward(self, cues: Tensor, latent: Tensor) -> Tensor:
        """Embeddings [N, K, T, D].

        Args:
            cues: [N, K, T, C].
            latent: [N, T, latent_width], of the mixture.
        """
        n, k = cues.shape[:2]
        x = self.cue_proj(cues.flatten(0, 1).transpose(1, 2))  # [N K, D, T]
        mixture = self.latent_proj(latent).transpose(1, 2)
        x = (x.unflatten(0, (n, k)) + mixture[:, None]).flatten(0, 1)
        for conv in self.convs:
            x = x + conv(x)
        embeddings: Tensor = self.norm(x.transpose(1, 2)).unflatten(0, (n, k))
        return embeddings


class SoundSeparator(HubWeights, library_name="cavmae", tags=["speech-separation"]):
    """Separator told by articulation cues.

    Args:
        config: of the model.
    """

    config_class = SoundSeparatorConfig
    model_type = "sound-separator"

    def __init__(self, config: SoundSeparatorConfig):
        super().__init__()
        self.config = config
        self.separator = SEPARATORS.build(config.separator, config.width)
        self.cue_encoder = ArticulationEncoder(config, self.separator.latent_width)
        self.activity_head = nn.Linear(config.width, 1)
        self.residual_head = nn.Linear(self.separator.latent_width, 1)
        nn.init.constant_(self.activity_head.bias, FIRST_LOGIT)

    def lr_scale(self, name: str) -> float:
        """Factor of the learning rate of a parameter."""
        kind, _, inner = name.partition(".")
        scale: float = self.separator.lr_scale(inner) if kind == "separator" else 1.0
        return scale

    def lr_start(self, name: str) -> float:
        """Fraction of training before which the learning rate of a parameter is 0."""
        kind, _, inner = name.partition(".")
        start: float = self.separator.lr_start(inner) if kind == "separator" else 0.0
        return start

    def forward(
        self, mixture: Tensor, cues: Tensor, visible: Tensor | None = None
    ) -> SeparatedVoices:
        """Voices of mixtures.

        Args:
            mixture: [N, S], with an RMS of 1.
            cues: [N, K, T, C].
            visible: bool [N, K, T], frames in which the cue is known; None: all.
        """
        features = self.separator.features(mixture)
        embeddings = self.cue_encoder(cues, features.latent)
        return self.separate(mixture, features, embeddings, visible=visible)

    def separate(
        self,
        mixture: Tensor,
        features: MixtureFeatures,
        embeddings: Tensor,
        presence_prob: Tensor | None = None,
        visible: Tensor | None = None,
    ) -> SeparatedVoices:
        """Voices of mixtures, by the embeddings of their cues.

        Args:
            mixture: [N, S], with an RMS of 1.
            features: of the mixture.
            embeddings: [N, K, T, D], of ``cue_encoder``.
            presence_prob: [N, K], a factor of the voices: 0 for nobody; None: 1 for all.
            visible: bool [N, K, T], frames in which the cue is known; None: all.
        """
        logits = torch.cat(
            [
                self.activity_head(embeddings)[..., 0],
                self.residual_head(features.latent).transpose(1, 2),
            ],
            dim=1,
        ).float()
        gates = logits.sigmoid()
        voice_gates = gates[:, :-1]
        if presence_prob is not None:
            voice_gates = voice_gates * presence_prob.float()[..., None]
        gates = torch.cat([voice_gates, gates[:, -1:] + LEAST_ACTIVITY], dim=1)
        spectra = self.separator.separate(mixture, features, embeddings, gates, visible)
        return SeparatedVoices(spectra, logits)
