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

    With several frames (``config.encoder.frames``) the video branch takes all of a clip in one
    pass, whose tokens are mixed by ``config.encoder.temporal``; the joint blocks take the audio and
    all frames as one sequence. The head pools over all tokens.

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
            image: normalised frames [N, F, 3, H, W], or [N, 3, H, W] of a model of one frame; F is
                that of the model. Unused where the mode has no video.
            mode: ``multimodal``: both modalities. ``audio_only``, ``video_only``: of a model that
                was fine-tuned on this modality. ``missing_video`` (only audio is there) and
                ``missing_audio`` (only video): of a model that was fine-tuned on both; the passes
                with the joint norms and with those of the modality are averaged. The authors call
                the last four ``audioonly``, ``videoonly``, ``missingaudioonly`` (missing video)
                and ``missingvideoonly`` (missing audio).

        Raises:
            ValueError: sizes, or a number of frames, that are not the model's.
        """
        return self.head(self.tokens(audio, image, mode))

    def forward_frames(self, audio: Tensor | None, frames: Tensor | None, mode: Mode) -> Tensor:
        """Class logits of each pass over a clip, to be averaged: [N, P, K].

        P is the number of frames for a model of one frame, and 1 for a model that takes all frames
        at once, or without video.

        Args:
            audio: as in :meth:`forward`.
            frames: [N, F, 3, H, W].
            mode: as in :meth:`forward`.
        """
        if not uses_video(mode) or frames is None or self.encoder_config.frames > 1:
            return self(audio, frames, mode)[:, None]
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
        frames = 1
        if audio is not None:
            modality, branch = "a", self.forward_branch(self.patchify_audio(audio), "a")
        elif image is not None:
            modality, branch, frames = "v", self._video_branch(image), self.encoder_config.frames
        else:
            raise ValueError(f"Mode {mode} needs the audio or the frames of the clips.")
        x = self.forward_joint(branch, modality, frames)
        if mode.startswith("missing"):
            x = (x + self.forward_joint(branch, None)) / 2
        return x

    def _video_branch(self, image: Tensor) -> Tensor:
        """Output of the video branch, frame after frame: [N, F L, D]."""
        frames_nf = image if image.dim() == 5 else image[:, None]
        count, wanted = frames_nf.shape[1], self.encoder_config.frames
        if count != wanted:
            raise ValueError(f"This model takes {wanted} frames of a clip at once, not {count}.")
        patches = self.patchify_image(frames_nf.flatten(0, 1))
        return self.forward_branch(patches, "v", frames=count)

    def _joint(self, branch_a: Tensor, image: Tensor) -> Tensor:
        """Tokens of both modalities, of the audio branch's output and frames."""
        return self.forward_joint(torch.cat([branch_a, self._video_branch(image)], dim=1), None)

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
