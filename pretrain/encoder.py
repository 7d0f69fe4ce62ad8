"""Encoder of CAV-MAE, shared by pretraining and fine-tuning.

Gong et al., *Contrastive Audio-Visual Masked Autoencoder*, ICLR 2023, arXiv 2210.07839. A branch of
transformer blocks for audio and one for frames, then joint blocks that take both together or
each alone. Several joint blocks are chained on every path; the authors' pretraining pass uses the
last one only (with one joint block, theirs, both agree).

Shapes: N samples, L tokens or patches, D width, P values of a patch.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cavmae.pretrain.blocks import NORM_EPS, Block, Modality
from cavmae.pretrain.positions import Grid, sin_cos_positions

# (least, most) of numbers of a model's shape: a damaged configuration fills no memory.
WIDEST: dict[str, tuple[int, int]] = {
    "patch": (1, 256), "width": (4, 8192), "heads": (1, 256), "depth": (0, 256),
    "joint_depth": (0, 256), "mlp_ratio": (0, 64), "decoder_width": (4, 8192),
    "decoder_heads": (1, 256), "decoder_depth": (0, 256), "contrast_width": (0, 8192),
    "image_size": (1, 4096), "audio_size": (1, 65536),
}  # fmt: skip

MOST_POSITIONS = 1 << 27  # values of the embeddings of positions


def check_bounds(shape: Any, bounds: Mapping[str, tuple[int, int]]) -> None:
    """Checks the bounds of numbers of a configuration. Raises ValueError naming the field."""
    for name, (least, most) in bounds.items():
        value = getattr(shape, name)
        if not all(least <= v <= most for v in (value if isinstance(value, tuple) else (value,))):
            raise ValueError(f"{name} {value} is not from {least} to {most}.")


@dataclasses.dataclass(frozen=True)
class CAVMAEConfig:
    """Configuration of a model; the defaults are those of the published base model.

    Args:
        image_size: (height, width) of a frame in pixels.
        audio_size: (mel bins, fbank frames).
        patch: side of a patch.
        width, heads: of the encoder's tokens and attention.
        depth: blocks of each modality's own branch.
        joint_depth: blocks shared by both.
        mlp_ratio: width of an MLP over that of a token.
        decoder_width, decoder_heads, decoder_depth: of the decoder.
        decoder: ``self``: attention among all tokens, as published; ``cross``: from masked tokens
            to visible ones only, about half the work of a training step.
        contrast_width: of the embeddings of :mod:`cavmae.pretrain.frame_contrast`; 0: none.
    """

    image_size: tuple[int, int] = (224, 224)
    audio_size: tuple[int, int] = (128, 1024)
    patch: int = 16
    width: int = 768
    heads: int = 12
    depth: int = 11
    joint_depth: int = 1
    mlp_ratio: float = 4.0
    decoder_width: int = 512
    decoder_heads: int = 16
    decoder_depth: int = 8
    decoder: Literal["self", "cross"] = "self"
    contrast_width: int = 0

    def __post_init__(self) -> None:
        for name in ("image_size", "audio_size"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        check_bounds(self, WIDEST)
        for name in ("image_size", "audio_size"):
            size = getattr(self, name)
            if any(side < self.patch or side % self.patch for side in size):
                raise ValueError(f"{name} {size} is not made of patches of {self.patch}.")
            tokens = (size[0] // self.patch) * (size[1] // self.patch)
            if tokens * max(self.width, self.decoder_width) > MOST_POSITIONS:
                raise ValueError(f"{name} {size} has {tokens} patches: too many.")
        if self.decoder not in ("self", "cross"):
            raise ValueError(f"decoder {self.decoder!r} is neither 'self' nor 'cross'.")
        for prefix in ("", "decoder_"):
            width, heads = getattr(self, f"{prefix}width"), getattr(self, f"{prefix}heads")
            if width % heads or width % 4:
                raise ValueError(
                    f"{prefix}width {width} is not a multiple of 4 and of {heads} heads."
                )

    @property
    def image_grid(self) -> Grid:
        """Rows and columns of image patches."""
        return self.image_size[0] // self.patch, self.image_size[1] // self.patch

    @property
    def audio_grid(self) -> Grid:
        """Rows (mel) and columns (time) of audio patches."""
        return self.audio_size[0] // self.patch, self.audio_size[1] // self.patch


SIZES: dict[str, dict[str, int]] = {
    "tiny": {"width": 192, "heads": 3, "depth": 5, "decoder_width": 128, "decoder_heads": 4,
             "decoder_depth": 2},
    "small": {"width": 384, "heads": 6, "depth": 11, "decoder_width": 256, "decoder_heads": 8,
              "decoder_depth": 4},
    "base": {},
    "large": {"width": 1024, "heads": 16, "depth": 23},
}  # fmt: skip


def config_for_size(size: str, **changes: Any) -> CAVMAEConfig:
    """Configuration of a size: ``tiny``, ``small``, ``base`` or ``large``.

    Raises:
        ValueError: no such size.
    """
    if size not in SIZES:
        raise ValueError(f"There is no size {size!r}; there are {', '.join(SIZES)}.")
    return CAVMAEConfig(**{**SIZES[size], **changes})


class PatchEmbedding(nn.Module):
    """Linear map of patches to tokens, with the weights of the usual convolution."""

    def __init__(self, channels: int, patch: int, width: int):
        super().__init__()
        self.patch = patch
        self.proj = nn.Conv2d(channels, width, kernel_size=patch, stride=patch)

    def patches(self, image: Tensor) -> Tensor:
        """Patches of an image: [N, C, H, W] -> [N, L, C * p * p], row by row."""
        n, c, h, w = image.shape
        p = self.patch
        cut = image.reshape(n, c, h // p, p, w // p, p).permute(0, 2, 4, 1, 3, 5)
        return cut.reshape(n, (h // p) * (w // p), c * p * p)

    def forward(self, patches: Tensor) -> Tensor:
        """Tokens of patches: [N, L, C * p * p] -> [N, L, D]."""
        return nn.functional.linear(patches, self.proj.weight.flatten(1), self.proj.bias)


class Encoder(nn.Module):
    """Encoder: one branch per modality, then joint blocks.

    Args:
        shape: of the model.
    """

    pos_embed_a: nn.Parameter
    pos_embed_v: nn.Parameter
    modality_a: nn.Parameter
    modality_v: nn.Parameter

    def __init__(self, shape: CAVMAEConfig):
        super().__init__()
        self.config = shape
        c = shape

        def blocks(count: int) -> nn.ModuleList:
            return nn.ModuleList(Block(c.width, c.heads, c.mlp_ratio) for _ in range(count))

        self.patch_embed_a = PatchEmbedding(1, c.patch, c.width)
        self.patch_embed_v = PatchEmbedding(3, c.patch, c.width)
        self.pos_embed_a = fixed_positions(c.width, c.audio_grid)
        self.pos_embed_v = fixed_positions(c.width, c.image_grid)
        self.modality_a = nn.Parameter(torch.zeros(1, 1, c.width))
        self.modality_v = nn.Parameter(torch.zeros(1, 1, c.width))
        self.blocks_a = blocks(c.depth)
        self.blocks_v = blocks(c.depth)
        self.blocks_u = blocks(c.joint_depth)
        self.norm_a = nn.LayerNorm(c.width, eps=NORM_EPS)
        self.norm_v = nn.LayerNorm(c.width, eps=NORM_EPS)
        self.norm = nn.LayerNorm(c.width, eps=NORM_EPS)
        # Blocks' inner activations are computed again in the backward pass instead of kept.
        self.checkpoint_activations = False

    def run(self, block: nn.Module, *inputs: Any) -> Tensor:
        """Output of a block, with or without activation checkpointing."""
        if self.checkpoint_activations and torch.is_grad_enabled():
            output: Tensor = checkpoint(block, *inputs, use_reentrant=False)
        else:
            output = block(*inputs)
        return output

    def initialise(self) -> None:
        """Initialization of MAE: Xavier for linear maps (patches too), small normal tokens."""
        for name, parameter in self.named_parameters():
            if name == "mask_token" or "modality_" in name:
                nn.init.normal_(parameter, std=0.02)
        for module in self.modules():
            if isinstance(module, PatchEmbedding):
                nn.init.xavier_uniform_(module.proj.weight.flatten(1))
            elif isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def patchify(self, audio: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Patches of both modalities, ready for the embedding.

        Args:
            audio: normalised fbanks [N, frames, mel].
            image: normalised frames [N, 3, H, W].

        Returns:
            [N, La, p * p] of audio, mel by mel, time running fastest; [N, Lv, 3 * p * p].

        Raises:
            ValueError: sizes that are not the model's.
        """
        return self.patchify_audio(audio), self.patchify_image(image)

    def patchify_audio(self, audio: Tensor) -> Tensor:
        """Audio patches of :meth:`patchify`."""
        wanted = self.config.audio_size[::-1]
        if tuple(audio.shape[1:]) != wanted:
            raise ValueError(f"This model takes fbanks of {wanted}, not {tuple(audio.shape[1:])}.")
        return self.patch_embed_a.patches(audio.transpose(1, 2)[:, None])

    def patchify_image(self, image: Tensor) -> Tensor:
        """Image patches of :meth:`patchify`."""
        wanted = (3, *self.config.image_size)
        if tuple(image.shape[1:]) != wanted:
            raise ValueError(f"This model takes frames of {wanted}, not {tuple(image.shape[1:])}.")
        return self.patch_embed_v.patches(image)

    def embed(self, patches: Tensor, modality: str, keep: Tensor | None = None) -> Tensor:
        """Tokens of (the visible) patches: [N, L, P] -> [N, K, D]. See :meth:`forward_branch`."""
        embedding: PatchEmbedding = getattr(self, f"patch_embed_{modality}")
        position: Tensor = getattr(self, f"pos_embed_{modality}")
        kind: Tensor = getattr(self, f"modality_{modality}")
        positions = position + kind
        if keep is None:
            return embedding(patches) + positions
        visible = gather_tokens(patches, keep)
        return embedding(visible) + gather_tokens(positions.expand(len(patches), -1, -1), keep)

    def forward_branch(self, patches: Tensor, modality: str, keep: Tensor | None = None) -> Tensor:
        """Branch of one modality: [N, L, P] -> [N, K, D].

        Args:
            modality: ``a`` (audio) or ``v`` (frames).
            keep: int64 [N, K], numbers of the patches that are visible; None: all of them.
        """
        x = self.embed(patches, modality, keep)
        for block in self.blocks_a if modality == "a" else self.blocks_v:
            x = self.run(block, x)
        return x

    def forward_joint(self, x: Tensor, modality: Modality) -> Tensor:
        """Joint blocks and the last norm: [N, L, D] -> [N, L, D].

        Args:
            modality: whose norms are used; None: those of both together.
        """
        for block in self.blocks_u:
            x = self.run(block, x, modality)
        norm = {None: self.norm, "a": self.norm_a, "v": self.norm_v}[modality]
        return norm(x)

    def features(self, audio: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Unmasked tokens of each modality alone: [N, La, D] and [N, Lv, D].

        Args:
            audio: [N, frames, mel].
            image: [N, 3, H, W].
        """
        return self.audio_features(audio), self.image_features(image)

    def frame_features(self, frames: Tensor, keep: Tensor | None = None) -> Tensor:
        """Tokens of several frames: [N, F, 3, H, W] -> [N, F, K, D].

        Args:
            keep: int64 [N, K], patches that are looked at in every frame of a clip; None: all.
        """
        if keep is not None:
            keep = keep.repeat_interleave(frames.shape[1], dim=0)
        return self.image_features(frames.flatten(0, 1), keep).unflatten(0, frames.shape[:2])

    def audio_features(self, audio: Tensor) -> Tensor:
        """Audio tokens of :meth:`features`."""
        branch = self.forward_branch(self.patchify_audio(audio), "a")
        return self.forward_joint(branch, "a")

    def image_features(self, image: Tensor, keep: Tensor | None = None) -> Tensor:
        """Image tokens of :meth:`features`, of all patches or of ``keep`` [N, K]."""
        branch = self.forward_branch(self.patchify_image(image), "v", keep)
        return self.forward_joint(branch, "v")


def fixed_positions(width: int, grid: Grid) -> nn.Parameter:
    """Sin-cos positions as entries of a state dict, as in the published weights."""
    return nn.Parameter(sin_cos_positions(width, grid), requires_grad=False)


def gather_tokens(tokens: Tensor, numbers: Tensor) -> Tensor:
    """Tokens at indices: [N, L, D] and [N, K] -> [N, K, D]."""
    return tokens.gather(1, numbers[..., None].expand(-1, -1, tokens.shape[-1]))
