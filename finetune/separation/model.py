"""Sound separator: a separation network whose voices belong to articulation cues.

Shapes: N mixtures, K voices, Q queries, S samples, T = S / 640 frames of 40 ms, C channels of a
cue, D width of an embedding.
"""

import torch
from torch import Tensor, nn

from cavmae.finetune.separation.binding import SeparatedVoices, VoiceBinder, bind
from cavmae.finetune.separation.config import SoundSeparatorConfig
from cavmae.finetune.separators.base import MixtureFeatures
from cavmae.finetune.separators.layers import DilatedConvs
from cavmae.finetune.separators.settings import SEPARATORS
from cavmae.pretrain.engine.hub import HubWeights

LEAST_ACTIVITY = 1e-3  # of the residual: the sum of activities is never 0
FIRST_LOGIT = 2.0  # of activities before training: voices pass


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
        self.convs = DilatedConvs(width, config.cue_layers)
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
        x = self.convs(x).transpose(1, 2)  # [N K, T, D]
        embeddings: Tensor = self.norm(x).unflatten(0, (n, k))
        return embeddings


class QueryEncoder(nn.Module):
    """Embeddings of voices without cues: learned queries that follow the mixture.

    Args:
        config: of the model.
        latent_width: of the separator's latent.
    """

    def __init__(self, config: SoundSeparatorConfig, latent_width: int):
        super().__init__()
        width = config.width
        self.queries = nn.Parameter(torch.randn(config.queries, width))
        self.latent_proj = nn.Linear(latent_width, width)
        self.convs = DilatedConvs(width, config.cue_layers)
        self.norm = nn.LayerNorm(width)

    def forward(self, latent: Tensor) -> Tensor:
        """Embeddings [N, Q, T, D] from the latent [N, T, latent_width] of the mixture."""
        mixture = self.latent_proj(latent)[:, None]
        x = (mixture + self.queries[:, None]).flatten(0, 1).transpose(1, 2)  # [N Q, D, T]
        x = self.convs(x).transpose(1, 2)  # [N Q, T, D]
        embeddings: Tensor = self.norm(x).unflatten(0, (len(latent), -1))
        return embeddings


class SoundSeparator(HubWeights, library_name="cavmae", tags=["speech-separation"]):
    """Separator of the voices that belong to articulation cues.

    Args:
        config: of the model.
    """

    config_class = SoundSeparatorConfig
    model_type = "sound-separator"

    def __init__(self, config: SoundSeparatorConfig):
        super().__init__()
        self.config = config
        self.separator = SEPARATORS.build(config.separator, config.width)
        if config.conditioning == "cue":
            self.cue_encoder = ArticulationEncoder(config, self.separator.latent_width)
        else:
            self.query_encoder = QueryEncoder(config, self.separator.latent_width)
            self.binder = VoiceBinder(config)
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
        """Voices of mixtures, in the order of their cues.

        Args:
            mixture: [N, S], with an RMS of 1.
            cues: [N, K, T, C].
            visible: bool [N, K, T], frames in which the cue is known; None: all.
        """
        features = self.separator.features(mixture)
        if self.config.conditioning == "cue":
            embeddings = self.cue_encoder(cues, features.latent)
            return self.separate(mixture, features, embeddings, visible=visible)
        outputs = self.separate(mixture, features, self.query_encoder(features.latent))
        return bind(outputs, *self.binder(outputs.spectra, cues, visible))

    def separate(
        self,
        mixture: Tensor,
        features: MixtureFeatures,
        embeddings: Tensor,
        presence_prob: Tensor | None = None,
        visible: Tensor | None = None,
    ) -> SeparatedVoices:
        """Voices of mixtures, by the embeddings of their cues or of queries.

        Args:
            mixture: [N, S], with an RMS of 1.
            features: of the mixture.
            embeddings: [N, K, T, D], of ``cue_encoder`` or ``query_encoder``.
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
