"""Event classification on the encoder of CAV-MAE (Gong et al., ICLR 2023, section 3.3).

Shapes: N clips, F frames of a clip, L tokens, D width of a token, K classes.
"""

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from cavmae.finetune.events.config import EventConfig, Mode
from cavmae.pretrain.blocks import NORM_EPS, AttentionPool, Modality
from cavmae.pretrain.encoder import Encoder
from cavmae.pretrain.engine.hub import HubWeights


class EventClassifier(Encoder, HubWeights, library_name="cavmae", tags=["audio-visual"]):
    """CAV-MAE encoder with a linear head on the pooled tokens.

    Args:
        config: of the model.
    """

    config_class = EventConfig
    model_type = "events"

    def __init__(self, config: EventConfig):
        super().__init__(config.encoder)
        self.config = config
        width = config.encoder.width
        self.pool: AttentionPool | None = None
        if config.pooling == "attention":
            self.pool = AttentionPool(width, config.encoder.heads, width)
        self.mlp_head = nn.Sequential(
            nn.LayerNorm(width, eps=NORM_EPS), nn.Linear(width, len(config.classes))
        )
        self.initialise()

    def forward(
        self, audio: Tensor | None, image: Tensor | None, mode: Mode = "multimodal"
    ) -> Tensor:
        """Class logits [N, K].

        Args:
            audio: normalised fbanks [N, frames, mel]; unused where the mode has no audio.
            image: normalised frames [N, 3, H, W]; unused where the mode has no video.
            mode: ``multimodal``: both modalities. ``audio_only``, ``video_only``: of a model that
                was fine-tuned on this modality. ``missing_video`` (only audio is there) and
                ``missing_audio`` (only video): of a model that was fine-tuned on both; the passes
                with the joint norms and with those of the modality are averaged. The authors call
                the last four ``audioonly``, ``videoonly``, ``missingaudioonly`` (missing video)
                and ``missingvideoonly`` (missing audio).
        """
        return self.head(self.tokens(audio, image, mode))

    def forward_frames(self, audio: Tensor | None, frames: Tensor | None, mode: Mode) -> Tensor:
        """Class logits of a clip with each of its frames: [N, F, K]; F is 1 without video.

        Args:
            audio: as in :meth:`forward`.
            frames: [N, F, 3, H, W].
            mode: as in :meth:`forward`.
        """
        if not uses_video(mode) or frames is None:
            return self(audio, None, mode)[:, None]
        if not uses_audio(mode):
            return torch.stack([self(None, frame, mode) for frame in frames.unbind(1)], dim=1)
        assert audio is not None
        branch_a = self.forward_branch(self.patchify_audio(audio), "a")
        return torch.stack(
            [self.head(self._joint(branch_a, frame)) for frame in frames.unbind(1)], dim=1
        )

    def tokens(self, audio: Tensor | None, image: Tensor | None, mode: Mode) -> Tensor:
        """Tokens of the encoder for the head: [N, L, D]. Arguments as in :meth:`forward`."""
        audio, image = audio if uses_audio(mode) else None, image if uses_video(mode) else None
        if audio is not None and image is not None:
            return self._joint(self.forward_branch(self.patchify_audio(audio), "a"), image)
        modality: Literal["a", "v"]
        if audio is not None:
            modality, branch = "a", self.forward_branch(self.patchify_audio(audio), "a")
        elif image is not None:
            modality, branch = "v", self.forward_branch(self.patchify_image(image), "v")
        else:
            raise ValueError(f"Mode {mode} needs the audio or the frames of the clips.")
        x = self.forward_joint(branch, modality)
        if mode.startswith("missing"):
            x = (x + self.forward_joint(branch, None)) / 2
        return x

    def _joint(self, branch_a: Tensor, image: Tensor) -> Tensor:
        """Tokens of both modalities, of the audio branch's output and frames."""
        branch_v = self.forward_branch(self.patchify_image(image), "v")
        return self.forward_joint(torch.cat([branch_a, branch_v], dim=1), None)

    def head(self, tokens: Tensor) -> Tensor:
        """Class logits of tokens: [N, L, D] -> [N, K]."""
        pooled = tokens.mean(dim=1) if self.pool is None else self.pool(tokens)
        logits: Tensor = self.mlp_head(pooled)
        return logits

    def head_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of pooling and head, which the encoder does not have."""
        if self.pool is not None:
            yield from self.pool.parameters()
        yield from self.mlp_head.parameters()

    def training_passes(self) -> tuple[Modality]:
        """Pass through the joint blocks of the modalities that the model is fine-tuned on."""
        passes: dict[str, Modality] = {"multimodal": None, "audio_only": "a", "video_only": "v"}
        return (passes[self.config.modalities],)


def uses_audio(mode: Mode) -> bool:
    """Whether a mode takes audio."""
    return mode not in ("video_only", "missing_audio")


def uses_video(mode: Mode) -> bool:
    """Whether a mode takes frames."""
    return mode not in ("audio_only", "missing_video")
