"""Encoder of CAV-MAE, shared by pretraining and fine-tuning.

Gong et al., *Contrastive Audio-Visual Masked Autoencoder*, ICLR 2023, arXiv 2210.07839. A branch of
transformer blocks for audio and one for frames, then joint blocks that take both together or
each alone. Several joint blocks are chained on every path; the authors' pretraining pass uses the
last one only (with one joint block, theirs, both agree).

Shapes: N samples, L tokens or patches, D width, P values of a patch.
"""

from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cavmae.pretrain.blocks import NORM_EPS, Block, Modality, unused_norm_parameters
from cavmae.pretrain.config import EncoderConfig
from cavmae.pretrain.positions import Grid, sin_cos_positions
from cavmae.pretrain.temporal.base import temporal_parameters
from cavmae.pretrain.temporal.settings import PER_FRAME, TemporalOptions


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
        config: of the encoder.
    """

    pos_embed_a: nn.Parameter
    pos_embed_v: nn.Parameter
    modality_a: nn.Parameter
    modality_v: nn.Parameter
    pos_embed_t: nn.Parameter | None

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.encoder_config = c = config
        self.patch_embed_a = PatchEmbedding(1, c.patch, c.width)
        self.patch_embed_v = PatchEmbedding(3, c.patch, c.width)
        self.pos_embed_a = fixed_positions(c.width, c.audio_grid)
        self.pos_embed_v = fixed_positions(c.width, c.image_grid)
        self.pos_embed_t = learned_frame_positions(c.width, c.frames) if c.mixes_frames else None
        self.modality_a = nn.Parameter(torch.zeros(1, 1, c.width))
        self.modality_v = nn.Parameter(torch.zeros(1, 1, c.width))
        self.blocks_a = self._blocks(c.depth, PER_FRAME)  # audio has no frames to mix
        self.blocks_v = self._blocks(c.depth, c.temporal)
        self.blocks_u = self._blocks(c.joint_depth, c.temporal)
        self.norm_a = nn.LayerNorm(c.width, eps=NORM_EPS)
        self.norm_v = nn.LayerNorm(c.width, eps=NORM_EPS)
        self.norm = nn.LayerNorm(c.width, eps=NORM_EPS)
        # Blocks' inner activations are computed again in the backward pass instead of kept.
        self.checkpoint_activations = False

    def _blocks(self, count: int, temporal: TemporalOptions) -> nn.ModuleList:
        """Blocks of the encoder: the only place that knows their kind."""
        c = self.encoder_config
        return nn.ModuleList(Block(c.width, c.heads, c.mlp_ratio, temporal) for _ in range(count))

    def run(self, block: nn.Module, *inputs: Any) -> Tensor:
        """Output of a block, with or without activation checkpointing."""
        if self.checkpoint_activations and torch.is_grad_enabled():
            output: Tensor = checkpoint(block, *inputs, use_reentrant=False)
        else:
            output = block(*inputs)
        return output

    def initialise(self) -> None:
        """Initialization of MAE: Xavier for linear maps (patches too), small normal tokens.

        What only serves several frames keeps the values of its constructor.
        """
        temporal = {id(parameter) for parameter in temporal_parameters(self).values()}
        for name, parameter in self.named_parameters():
            if name == "mask_token" or "modality_" in name:
                nn.init.normal_(parameter, std=0.02)
        for module in self.modules():
            if isinstance(module, PatchEmbedding):
                nn.init.xavier_uniform_(module.proj.weight.flatten(1))
            elif isinstance(module, nn.Linear) and id(module.weight) not in temporal:
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
        wanted = self.encoder_config.audio_size[::-1]
        if tuple(audio.shape[1:]) != wanted:
            raise ValueError(f"This model takes fbanks of {wanted}, not {tuple(audio.shape[1:])}.")
        return self.patch_embed_a.patches(audio.transpose(1, 2)[:, None])

    def patchify_image(self, image: Tensor) -> Tensor:
        """Image patches of :meth:`patchify`."""
        wanted = (3, *self.encoder_config.image_size)
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

    def forward_branch(
        self, patches: Tensor, modality: str, keep: Tensor | None = None, frames: int = 1
    ) -> Tensor:
        """Branch of one modality: [N F, L, P] -> [N, F K, D], frame after frame.

        Args:
            modality: ``a`` (audio, F = 1) or ``v`` (frames).
            keep: int64 [N F, K], numbers of the patches that are visible; None: all of them.
            frames: F, frames of a clip, which follow each other in ``patches``.

        Raises:
            ValueError: several frames, but not as many as the model has positions for.
        """
        x_nfkd = self.embed(patches, modality, keep).unflatten(0, (-1, frames))
        if modality == "v" and self.pos_embed_t is not None:
            x_nfkd = with_frame_positions(x_nfkd, self.pos_embed_t)
        x = x_nfkd.flatten(1, 2)
        for block in self.blocks_a if modality == "a" else self.blocks_v:
            x = self.run(block, x, None, frames)
        return x

    def forward_joint(self, x: Tensor, modality: Modality, frames: int = 1) -> Tensor:
        """Joint blocks and the last norm: [N, L, D] -> [N, L, D].

        Args:
            modality: whose norms are used; None: those of both together.
            frames: of a clip, for video alone; both modalities are one sequence.
        """
        for block in self.blocks_u:
            x = self.run(block, x, modality, frames)
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
        count = frames.shape[1]
        if keep is not None:
            keep = keep.repeat_interleave(count, dim=0)
        patches = self.patchify_image(frames.flatten(0, 1))
        branch = self.forward_branch(patches, "v", keep, count)
        return self.forward_joint(branch, "v", count).unflatten(1, (count, -1))

    def audio_features(self, audio: Tensor) -> Tensor:
        """Audio tokens of :meth:`features`."""
        branch = self.forward_branch(self.patchify_audio(audio), "a")
        return self.forward_joint(branch, "a")

    def image_features(self, image: Tensor) -> Tensor:
        """Image tokens of :meth:`features`."""
        return self.frame_features(image[:, None])[:, 0]

    def parameters_without_gradient(
        self, passes: Collection[Modality], frames: int = 1
    ) -> Iterator[nn.Parameter]:
        """Parameters that get no gradient in a task; DDP would wait for it.

        Fixed positions are not among them: they require none to begin with.

        Args:
            passes: through the joint blocks that the task runs: None: both modalities together;
                ``a``, ``v``: audio or video alone.
            frames: of a clip in the passes of video.
        """
        for modality, embedding, blocks, last in (
            ("a", self.patch_embed_a, self.blocks_a, self.norm_a),
            ("v", self.patch_embed_v, self.blocks_v, self.norm_v),
        ):
            if modality not in passes:
                yield from last.parameters()
                if None not in passes:
                    yield getattr(self, f"modality_{modality}")
                    yield from (*embedding.parameters(), *blocks.parameters())
        if None not in passes:
            yield from self.norm.parameters()
        yield from unused_norm_parameters(self.blocks_a, (None,))
        yield from unused_norm_parameters(self.blocks_v, (None,))
        yield from unused_norm_parameters(self.blocks_u, passes)
        if frames == 1:
            yield from temporal_parameters(self.blocks_v).values()
        if self.pos_embed_t is not None and (frames == 1 or not {None, "v"} & {*passes}):
            yield self.pos_embed_t
        if frames == 1 or "v" not in passes:  # both together are one sequence
            yield from temporal_parameters(self.blocks_u).values()

    def frame_positions(self) -> dict[str, nn.Parameter]:
        """Learned positions of frames by name; none in a model that needs none."""
        return {} if self.pos_embed_t is None else {"pos_embed_t": self.pos_embed_t}

    def group_matcher(self) -> dict[str, str]:
        """Patterns of the names of parameters, layer after layer, in the form of timm."""
        return {
            "embedding": r"^(?:patch_embed|pos_embed|modality)_",
            "branches": r"^blocks_[av]\.(\d+)",
            "joint": r"^blocks_u\.(\d+)",
            "norm": r"^norm",
        }

    def layer_groups(self) -> dict[str, int]:
        """Number of the layer of each parameter, as timm counts layers for learning rate decay.

        Embeddings are layer 0, block i of both branches is layer i + 1, the joint blocks follow,
        then the last norms, then what a derived model has besides.
        """
        from timm.models import group_parameters  # takes seconds, and few runs need it

        groups: dict[int, list[str]] = group_parameters(self, self.group_matcher())
        return {name: layer for layer, names in groups.items() for name in names}


def fixed_positions(width: int, grid: Grid) -> nn.Parameter:
    """Sin-cos positions as entries of a state dict, as in the published weights."""
    return nn.Parameter(sin_cos_positions(width, grid), requires_grad=False)


def learned_frame_positions(width: int, frames: int) -> nn.Parameter:
    """Learned positions of frames [1, F, D], 0 at first (TimeSformer, arXiv 2102.05095)."""
    return nn.Parameter(torch.zeros(1, frames, width))


def with_frame_positions(tokens: Tensor, positions: Tensor) -> Tensor:
    """Tokens [N, F, K, D] with the positions [1, F, D] of their frames; a single one has none.

    Raises:
        ValueError: several frames, but not as many as there are positions.
    """
    count, wanted = tokens.shape[1], positions.shape[1]
    if count == 1:
        return tokens
    if count != wanted:
        raise ValueError(f"This model takes clips of {wanted} frames or of one, not of {count}.")
    return tokens + positions[:, :, None]


def gather_tokens(tokens: Tensor, numbers: Tensor) -> Tensor:
    """Tokens at indices: [N, L, D] and [N, K] -> [N, K, D]."""
    return tokens.gather(1, numbers[..., None].expand(-1, -1, tokens.shape[-1]))
