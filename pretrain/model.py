"""CAV-MAE: masked autoencoder of audio and video with a contrastive objective.

Gong et al., *Contrastive Audio-Visual Masked Autoencoder*, ICLR 2023, arXiv 2210.07839. Numerically
the authors' implementation (tests/pretrain/test_golden.py), with these differences in how it is
computed: patches are embedded only where they stay visible, predictions are made and compared only
where they were masked, and attention is fused.

With several frames (``config.frames``) each of them is masked and reconstructed; the joint pass
takes the audio and all frames as one sequence, and the decoder gets learned positions of frames.

Shapes: N samples, F frames, L tokens or patches, D width, P values of a patch. N F rows are frames,
those of a clip after each other.
"""

from collections.abc import Collection, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cavmae.pretrain.blocks import (
    NORM_EPS,
    AttentionPool,
    Block,
    CrossBlock,
    Modality,
    unused_norm_parameters,
)
from cavmae.pretrain.config import CAVMAEConfig
from cavmae.pretrain.encoder import (
    Encoder,
    fixed_positions,
    gather_tokens,
    learned_frame_positions,
    with_frame_positions,
)
from cavmae.pretrain.engine.hub import HubWeights
from cavmae.pretrain.frame_contrast import group_by_bin
from cavmae.pretrain.losses import reconstruction_loss
from cavmae.pretrain.masking import Masking, mask_from_noise, structured_noise
from cavmae.pretrain.settings import FrameMasks, MaskMode


class Latents(NamedTuple):
    """Encoded visible tokens.

    Attributes:
        joint: [N, kept of both, D], audio first, then frame after frame.
        audio, video: [N, kept, D], each modality alone through the joint blocks.
        masking_a, masking_v: which patches are visible, of N and of N F rows.
    """

    joint: Tensor
    audio: Tensor
    video: Tensor
    masking_a: Masking
    masking_v: Masking


class CAVMAEOutput(NamedTuple):
    """Output of a forward pass.

    Attributes:
        audio_loss, video_loss: mean squared errors of masked patches; None: not reconstructed.
        audio, video: pooled latents [N, D] of each modality alone; None: not contrasted.
    """

    audio_loss: Tensor | None
    video_loss: Tensor | None
    audio: Tensor | None
    video: Tensor | None


class CAVMAE(Encoder, HubWeights, library_name="cavmae", tags=["audio-visual"]):
    """Pretraining model: encoder, and decoder of masked patches.

    ``CAVMAE.from_pretrained(FOLDER or name on the hub)`` loads one, ``save_pretrained`` and
    ``push_to_hub`` write one.

    Args:
        config: of the model.
    """

    config_class = CAVMAEConfig
    model_type = "cav-mae"
    decoder_pos_embed_a: nn.Parameter
    decoder_pos_embed_v: nn.Parameter
    decoder_pos_embed_t: nn.Parameter | None

    def __init__(self, config: CAVMAEConfig):
        super().__init__(config)
        self.config = c = config
        self.decoder_embed = nn.Linear(c.width, c.decoder_width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, c.decoder_width))
        self.decoder_modality_a = nn.Parameter(torch.zeros(1, 1, c.decoder_width))
        self.decoder_modality_v = nn.Parameter(torch.zeros(1, 1, c.decoder_width))
        self.decoder_pos_embed_a = fixed_positions(c.decoder_width, c.audio_grid)
        self.decoder_pos_embed_v = fixed_positions(c.decoder_width, c.image_grid)
        several = c.frames > 1
        times = learned_frame_positions(c.decoder_width, c.frames) if several else None
        self.decoder_pos_embed_t = times
        kind = Block if c.decoder == "self" else CrossBlock
        self.decoder_blocks = nn.ModuleList(
            kind(c.decoder_width, c.decoder_heads, c.mlp_ratio) for _ in range(c.decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(c.decoder_width, eps=NORM_EPS)
        self.decoder_pred_a = nn.Linear(c.decoder_width, c.patch**2)
        self.decoder_pred_v = nn.Linear(c.decoder_width, 3 * c.patch**2)
        if c.contrast_width:
            self.audio_bin_pool = AttentionPool(c.width, c.heads, c.contrast_width)
            self.frame_pool = AttentionPool(c.width, c.heads, c.contrast_width)
        self.initialise()

    def forward(
        self,
        fbank: Tensor,
        image: Tensor,
        masking_a: Masking,
        masking_v: Masking,
        reconstruct: bool = True,
        contrast: bool = True,
        norm_pix_loss: bool = True,
        fraction: float = 1.0,
    ) -> CAVMAEOutput:
        """Reconstruction losses and embeddings of masked clips, as training computes them.

        Args:
            fbank: normalised [N, frames, mel].
            image: normalised [N F, 3, H, W].
            masking_a, masking_v: see :meth:`mask`.
            reconstruct: compute the losses.
            contrast: compute the embeddings.
            norm_pix_loss, fraction: see :meth:`forward_loss`.

        Raises:
            ValueError: sizes, or a number of frames, that are not the model's.
        """
        patches_a, patches_v = self.patchify(fbank, image)
        latents = self.forward_encoder(
            patches_a, patches_v, masking_a, masking_v, together=reconstruct, alone=contrast
        )
        audio = video = audio_loss = video_loss = None
        if contrast:
            audio, video = latents.audio.mean(1), latents.video.mean(1)
        if reconstruct:
            audio_loss, video_loss = self.forward_loss(
                patches_a, patches_v, latents, norm_pix_loss, fraction
            )
        return CAVMAEOutput(audio_loss, video_loss, audio, video)

    def mask(
        self,
        batch: int,
        ratio_a: float,
        ratio_v: float,
        mode: MaskMode = "unstructured",
        noise: tuple[Tensor, Tensor] | None = None,
        frames: int = 1,
        frame_masks: FrameMasks = "tube",
    ) -> tuple[Masking, Masking]:
        """Random masks of audio [N, La] and image patches [N F, Lv].

        Args:
            noise: uniform [N, La] and [N, Lv] (``independent``: [N F, Lv]) instead of drawn
                numbers.
            frames: F.
            frame_masks: ``tube``: the same patches in all frames of a clip (VideoMAE, arXiv
                2203.12602); ``independent``: drawn for each frame.
        """
        device = self.modality_a.device
        tube = frame_masks == "tube"
        if noise is None:
            rows_v = batch if tube else batch * frames
            noise = (
                torch.rand(batch, self.pos_embed_a.shape[1], device=device),
                torch.rand(rows_v, self.pos_embed_v.shape[1], device=device),
            )
        audio = structured_noise(noise[0], self.config.audio_grid, ratio_a, mode)
        video = noise[1].repeat_interleave(frames, dim=0) if tube else noise[1]
        return mask_from_noise(audio, ratio_a), mask_from_noise(video, ratio_v)

    def forward_encoder(
        self,
        patches_a: Tensor,
        patches_v: Tensor,
        masking_a: Masking,
        masking_v: Masking,
        together: bool = True,
        alone: bool = True,
    ) -> Latents:
        """Three passes through the joint blocks: both modalities, audio alone, video alone.

        Args:
            patches_a, patches_v: [N, La, P] and [N F, Lv, P].
            together: make the first pass, which the reconstruction needs.
            alone: make the other two, which the contrast needs. What is not made is empty.
        """
        frames = len(patches_v) // len(patches_a)
        a = self.forward_branch(patches_a, "a", masking_a.ids_keep)
        v = self.forward_branch(patches_v, "v", masking_v.ids_keep, frames)
        joint = audio = video = a.new_empty(0)
        if together:
            joint = self.forward_joint(torch.cat([a, v], dim=1), None)
        if alone:
            audio, video = self.forward_joint(a, "a"), self.forward_joint(v, "v", frames)
        return Latents(joint, audio, video, masking_a, masking_v)

    def forward_decoder(
        self, latents: Latents, wanted_a: Tensor | None = None, wanted_v: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Decoded tokens of some patches: audio [N, Ma, D'] and video [N F, Mv, D'].

        Args:
            wanted_a, wanted_v: int64 [N, Ma] and [N F, Mv], numbers of the patches; None: all.
        """
        x = self.decoder_embed(latents.joint)
        decode = self._decode_all if self.config.decoder == "self" else self._decode_wanted
        return decode(x, latents, wanted_a, wanted_v)

    def _decode_all(
        self, x: Tensor, latents: Latents, wanted_a: Tensor | None, wanted_v: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Decoder with self-attention over visible and mask tokens, as published."""
        keep_a, keep_v = latents.masking_a.ids_keep, latents.masking_v.ids_keep
        visible_a, visible_v = by_frame(x, keep_a.shape[1], len(keep_v))
        a = self._restored(visible_a, latents.masking_a)
        v = self._restored(visible_v, latents.masking_v)
        a = a + self.decoder_pos_embed_a + self.decoder_modality_a
        v = self._with_times(v + self.decoder_pos_embed_v + self.decoder_modality_v, len(x))
        audio = a.shape[1]
        x = torch.cat([a, v.reshape(len(x), -1, v.shape[-1])], dim=1)
        for block in self.decoder_blocks:
            x = self.run(block, x)
        a, v = by_frame(x, audio, len(keep_v))
        a = a if wanted_a is None else gather_tokens(a, wanted_a)
        v = v if wanted_v is None else gather_tokens(v, wanted_v)
        return self.decoder_norm(a), self.decoder_norm(v)

    def _decode_wanted(
        self, x: Tensor, latents: Latents, wanted_a: Tensor | None, wanted_v: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Decoder with cross-attention from mask tokens to visible tokens (CrossMAE)."""
        n, _, width = x.shape
        keep_a, keep_v = latents.masking_a.ids_keep, latents.masking_v.ids_keep
        places_a = (self.decoder_pos_embed_a + self.decoder_modality_a).expand(n, -1, -1)
        places_v = self.decoder_pos_embed_v + self.decoder_modality_v
        places_v = self._with_times(places_v.expand(len(keep_v), -1, -1), n)
        visible_a, visible_v = by_frame(x, keep_a.shape[1], len(keep_v))
        visible_a = visible_a + gather_tokens(places_a, keep_a)
        visible_v = visible_v + gather_tokens(places_v, keep_v)
        seen = torch.cat([visible_a, visible_v.reshape(n, -1, width)], dim=1)
        a, v = (
            self.mask_token + (p if wanted is None else gather_tokens(p, wanted))
            for p, wanted in ((places_a, wanted_a), (places_v, wanted_v))
        )
        audio = a.shape[1]
        x = torch.cat([a, v.reshape(n, -1, width)], dim=1)
        for block in self.decoder_blocks:
            x = self.run(block, x, seen)
        return by_frame(self.decoder_norm(x), audio, len(keep_v))

    def _with_times(self, tokens: Tensor, clips: int) -> Tensor:
        """Tokens [N F, L, D'] with the positions of their frames.

        Raises:
            ValueError: a number of frames that the model does not reconstruct.
        """
        if len(tokens) == clips:
            return tokens
        if self.decoder_pos_embed_t is None:
            raise ValueError(
                f"This model reconstructs one frame of a clip, not {len(tokens) // clips}."
            )
        frames = tokens.unflatten(0, (clips, -1))
        return with_frame_positions(frames, self.decoder_pos_embed_t).flatten(0, 1)

    def _restored(self, visible: Tensor, masking: Masking) -> Tensor:
        """Visible tokens and mask tokens in the order of the patches."""
        missing = masking.ids_masked.shape[1]
        tokens = self.mask_token.expand(len(visible), missing, -1).to(visible.dtype)
        return gather_tokens(torch.cat([visible, tokens], dim=1), masking.ids_restore)

    def forward_loss(
        self,
        patches_a: Tensor,
        patches_v: Tensor,
        latents: Latents,
        norm_pix_loss: bool = True,
        fraction: float = 1.0,
    ) -> tuple[Tensor, Tensor]:
        """Reconstruction losses of masked audio and video patches, those of all frames.

        Args:
            patches_a, patches_v: [N, La, P] and [N F, Lv, P].
            latents: with the joint pass.
            norm_pix_loss: reconstruct patches normalised one by one.
            fraction: of the masked patches that are decoded, drawn for every sample.
        """
        hidden_a = subset_of_masked(latents.masking_a.ids_masked, fraction)
        hidden_v = subset_of_masked(latents.masking_v.ids_masked, fraction)
        a, v = self.forward_decoder(latents, hidden_a, hidden_v)
        loss_a = reconstruction_loss(
            self.decoder_pred_a(a), gather_tokens(patches_a, hidden_a), norm_pix_loss
        )
        target_v = channels_last(gather_tokens(patches_v, hidden_v))
        return loss_a, reconstruction_loss(self.decoder_pred_v(v), target_v, norm_pix_loss)

    def audio_bin_embeddings(self, tokens: Tensor) -> Tensor:
        """Embeddings of time bins from unmasked audio tokens: [N, La, D] -> [N, T, C]."""
        embeddings: Tensor = self.audio_bin_pool(group_by_bin(tokens, self.config.audio_grid))
        return embeddings.unflatten(0, (len(tokens), -1))

    def frame_embeddings(self, tokens: Tensor) -> Tensor:
        """Embeddings of frames from their unmasked tokens: [N, F, Lv, D] -> [N, F, C]."""
        embeddings: Tensor = self.frame_pool(tokens.flatten(0, 1))
        return embeddings.unflatten(0, tokens.shape[:2])

    def parameters_without_gradient(
        self, passes: Collection[Modality], frames: int = 1
    ) -> Iterator[nn.Parameter]:
        """See :meth:`Encoder.parameters_without_gradient`; both together are reconstructed."""
        yield from super().parameters_without_gradient(passes, frames)
        if None not in passes:
            yield from (self.mask_token, self.decoder_modality_a, self.decoder_modality_v)
            for part in (
                self.decoder_embed, self.decoder_blocks, self.decoder_norm, self.decoder_pred_a,
                self.decoder_pred_v,
            ):  # fmt: skip
                yield from part.parameters()
        if self.decoder_pos_embed_t is not None and (frames == 1 or None not in passes):
            yield self.decoder_pos_embed_t
        yield from unused_norm_parameters(self.decoder_blocks, (None,))

    def frame_positions(self) -> dict[str, nn.Parameter]:
        """See :meth:`Encoder.frame_positions`; those of the decoder come with several frames."""
        times = self.decoder_pos_embed_t
        return super().frame_positions() | ({} if times is None else {"decoder_pos_embed_t": times})

    def reconstruct(self, latents: Latents) -> tuple[Tensor, Tensor]:
        """Predicted values of all patches: [N, La, p * p] and [N F, Lv, p * p * 3].

        A patch's values run row by row, those of a frame with the channel fastest.
        """
        a, v = self.forward_decoder(latents)
        return self.decoder_pred_a(a), self.decoder_pred_v(v)


def by_frame(x: Tensor, audio: int, rows: int) -> tuple[Tensor, Tensor]:
    """Tokens of audio [N, A, D] and of frames [rows, ., D] of sequences of both.

    Args:
        x: [N, A + ..., D].
        audio: A.
        rows: N F.
    """
    return x[:, :audio], x[:, audio:].reshape(rows, -1, x.shape[-1])


def subset_of_masked(numbers: Tensor, fraction: float) -> Tensor:
    """Random subset of indices: [N, M] -> [N, fraction * M], at least one per row."""
    if fraction >= 1:
        return numbers
    count = max(1, round(numbers.shape[1] * fraction))
    chosen = torch.rand(numbers.shape, device=numbers.device).argsort(dim=1)[:, :count]
    return numbers.gather(1, chosen)


def channels_last(patches: Tensor) -> Tensor:
    """Patches with the channel fastest: the order of [N, L, 3 * p * p] changes."""
    return patches.unflatten(-1, (3, -1)).transpose(-1, -2).flatten(-2)
