"""Event classification on the encoder of CAV-MAE (Gong et al., ICLR 2023, section 3.3).

Shapes: N clips, F frames of a clip, L tokens, D width of a token, K classes, T grey frames of
h x w pixels.
"""

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from cavmae.finetune.events.config import EventConfig, Mode
from cavmae.finetune.events.motion_branch import MotionBranch
from cavmae.pretrain.blocks import NORM_EPS, AttentionPool, Modality
from cavmae.pretrain.encoder import Encoder
from cavmae.pretrain.engine.hub import HubWeights


class EventClassifier(Encoder, HubWeights, library_name="cavmae", tags=["audio-visual"]):
    """CAV-MAE encoder with a linear head on the pooled tokens.

    With several frames (``config.encoder.frames``) the video branch takes all of a clip in one
    pass, whose tokens are mixed by ``config.encoder.temporal``; the joint blocks take the audio and
    all frames as one sequence. The head pools over all tokens. With a motion pathway
    (``config.motion_size``), what it reads of 25 grey frames a second is added to the tokens of
    frames, and makes tokens of its own, before the joint blocks.

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
        self.motion_branch = None if config.motion_size is None else MotionBranch(config)

    def forward(
        self, audio: Tensor | None, image: Tensor | None, mode: Mode = "multimodal",
        motion: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
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
            motion: uint8 or float of 0 to 255 [N, T, h, w], grey frames for a motion pathway;
                unused without one.

        Raises:
            ValueError: sizes, or a number of frames, that are not the model's.
        """
        return self.head(self.tokens(audio, image, mode, self.motion_features(motion, mode)))

    def motion_features(self, motion: Tensor | None, mode: Mode) -> Tensor | None:
        """Output of the motion pathway [N, T, C, h / 4, w / 4]; None: the mode has none.

        Raises:
            ValueError: grey frames that are not of the model's number and size.
        """
        if self.motion_branch is None or not uses_video(mode):
            return None
        size = self.config.motion_size
        wanted = self.config.motion_frames, *(size or ())
        if motion is None or tuple(motion.shape[1:]) != wanted:
            shape = None if motion is None else tuple(motion.shape[1:])
            raise ValueError(f"This model takes grey frames of {wanted}, not {shape}.")
        features: Tensor = self.motion_branch.pathway(motion)
        return features

    def forward_frames(
        self, audio: Tensor | None, frames: Tensor | None, mode: Mode, motion: Tensor | None = None
    ) -> Tensor:
        """Class logits of each pass over a clip, to be averaged: [N, P, K].

        P is the number of frames for a model of one frame, and 1 for a model that takes all frames
        at once, or without video.

        Args:
            audio: as in :meth:`forward`.
            frames: [N, F, 3, H, W].
            mode: as in :meth:`forward`.
            motion: as in :meth:`forward`.
        """
        if not uses_video(mode) or frames is None or self.encoder_config.frames > 1:
            return self(audio, frames, mode, motion)[:, None]
        features = self.motion_features(motion, mode)
        branch_a = None
        if uses_audio(mode):
            assert audio is not None
            branch_a = self.forward_branch(self.patchify_audio(audio), "a")
        logits = []
        for frame in frames.unbind(1):
            if branch_a is None:
                tokens = self.tokens(None, frame, mode, features)
            else:
                video = self._video_tokens(frame, features, audio, None)
                tokens = self.forward_joint(torch.cat([branch_a, video], dim=1), None)
            logits.append(self.head(tokens))
        return torch.stack(logits, dim=1)

    def tokens(
        self, audio: Tensor | None, image: Tensor | None, mode: Mode,
        motion: Tensor | None = None, audio_gate: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Tokens of the encoder for the head: [N, L, D].

        Args:
            audio: as in :meth:`forward`.
            image: as in :meth:`forward`.
            mode: as in :meth:`forward`.
            motion: of :meth:`motion_features`.
            audio_gate: float [N], factors of the laterals from audio in training; None: 1.
        """
        audio, image = audio if uses_audio(mode) else None, image if uses_video(mode) else None
        if audio is not None and image is not None:
            branch_a = self.forward_branch(self.patchify_audio(audio), "a")
            video = self._video_tokens(image, motion, audio, audio_gate)
            return self.forward_joint(torch.cat([branch_a, video], dim=1), None)
        modality: Literal["a", "v"]
        frames = 1
        if audio is not None:
            modality, branch = "a", self.forward_branch(self.patchify_audio(audio), "a")
        elif image is not None:
            modality, frames = "v", self.encoder_config.frames
            branch = self._video_tokens(image, motion, None, None)
        else:
            raise ValueError(f"Mode {mode} needs the audio or the frames of the clips.")
        if modality == "v" and self.motion_branch is not None:
            frames = 1  # with tokens of motion beside them, frames are one sequence
        x = self.forward_joint(branch, modality, frames)
        if mode.startswith("missing"):
            x = (x + self.forward_joint(branch, None)) / 2
        return x

    def _video_tokens(
        self, image: Tensor, motion: Tensor | None, audio: Tensor | None, audio_gate: Tensor | None
    ) -> Tensor:
        """Output of the video branch, frame after frame, and tokens of motion: [N, F L + S, D]."""
        frames_nf = image if image.dim() == 5 else image[:, None]
        count, wanted = frames_nf.shape[1], self.encoder_config.frames
        if count != wanted:
            raise ValueError(f"This model takes {wanted} frames of a clip at once, not {count}.")
        patches = self.patchify_image(frames_nf.flatten(0, 1))
        tokens = self.forward_branch(patches, "v", frames=count)
        if self.motion_branch is None:
            return tokens
        assert motion is not None
        joined: Tensor = self.motion_branch(tokens, motion, audio, audio_gate)
        return joined

    def head(self, tokens: Tensor) -> Tensor:
        """Class logits of tokens: [N, L, D] -> [N, K]."""
        pooled = tokens.mean(dim=1) if self.pool is None else self.pool(tokens)
        logits: Tensor = self.mlp_head(pooled)
        return logits

    def head_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters that the encoder does not have: of pooling, head and motion branch."""
        if self.motion_branch is not None:
            yield from self.motion_branch.parameters()
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
