"""CAV-MAE: a masked autoencoder of sound and picture with a contrastive objective.

Gong et al., *Contrastive Audio-Visual Masked Autoencoder*, ICLR 2023, arXiv 2210.07839. Numerically
the authors' implementation (tests/pretrain/test_golden.py), with these differences in how it is
computed: patches are embedded only where they stay visible, predictions are made and compared only
where they were masked, and attention is fused.

Shapes: N samples, L tokens or patches, D width, P values of a patch.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from cavmae.pretrain.blocks import NORM_EPS, Block
from cavmae.pretrain.encoder import CAVMAEConfig, Encoder, HubWeights, fixed_positions, take
from cavmae.pretrain.losses import Contrast, info_nce, reconstruction_loss
from cavmae.pretrain.masking import Masking, MaskMode, mask_by, structured_noise

TEMPERATURE = 0.05


class Latents(NamedTuple):
    """What the encoder makes of the visible tokens.

    Attributes:
        joint: [N, kept of both, D], sound first.
        audio, video: [N, kept, D], each modality alone through the joint blocks.
        masking_a, masking_v: which patches are visible.
    """

    joint: Tensor
    audio: Tensor
    video: Tensor
    masking_a: Masking
    masking_v: Masking


class Losses(NamedTuple):
    """Of a batch: the total, its parts before weighting, and the contrastive accuracy."""

    total: Tensor
    audio: Tensor
    video: Tensor
    contrastive: Tensor
    accuracy: Tensor


class CAVMAE(Encoder, HubWeights, library_name="cavmae", tags=["audio-visual"]):
    """The pretraining model: the encoder, and a decoder that reconstructs what was masked.

    ``CAVMAE.from_pretrained(FOLDER or name on the hub)`` loads one, ``save_pretrained`` and
    ``push_to_hub`` write one.

    Args:
        shape: of the model.
    """

    decoder_pos_embed_a: nn.Parameter
    decoder_pos_embed_v: nn.Parameter

    def __init__(self, shape: CAVMAEConfig):
        super().__init__(shape)
        c = shape
        self.decoder_embed = nn.Linear(c.width, c.decoder_width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, c.decoder_width))
        self.decoder_modality_a = nn.Parameter(torch.zeros(1, 1, c.decoder_width))
        self.decoder_modality_v = nn.Parameter(torch.zeros(1, 1, c.decoder_width))
        self.decoder_pos_embed_a = fixed_positions(c.decoder_width, c.audio_grid)
        self.decoder_pos_embed_v = fixed_positions(c.decoder_width, c.image_grid)
        self.decoder_blocks = nn.ModuleList(
            Block(c.decoder_width, c.decoder_heads, c.mlp_ratio) for _ in range(c.decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(c.decoder_width, eps=NORM_EPS)
        self.decoder_pred_a = nn.Linear(c.decoder_width, c.patch**2)
        self.decoder_pred_v = nn.Linear(c.decoder_width, 3 * c.patch**2)
        self.initialise()

    def mask(
        self,
        batch: int,
        ratio_a: float,
        ratio_v: float,
        mode: MaskMode = "unstructured",
        noise: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Masking, Masking]:
        """Draws which patches of sound and picture are masked.

        Args:
            noise: uniform [N, La] and [N, Lv] instead of drawn numbers.
        """
        device = self.modality_a.device
        if noise is None:
            noise = (
                torch.rand(batch, self.pos_embed_a.shape[1], device=device),
                torch.rand(batch, self.pos_embed_v.shape[1], device=device),
            )
        sound = structured_noise(noise[0], self.config.audio_grid, ratio_a, mode)
        return mask_by(sound, ratio_a), mask_by(noise[1], ratio_v)

    def forward_encoder(
        self, patches_a: Tensor, patches_v: Tensor, masking_a: Masking, masking_v: Masking
    ) -> Latents:
        """Three passes through the joint blocks: both together, sound alone, pictures alone.

        Args:
            patches_a, patches_v: [N, L, P].
        """
        a = self.forward_branch(patches_a, "a", masking_a)
        v = self.forward_branch(patches_v, "v", masking_v)
        joint = self.forward_joint(torch.cat([a, v], dim=1), None)
        audio, video = self.forward_joint(a, "a"), self.forward_joint(v, "v")
        return Latents(joint, audio, video, masking_a, masking_v)

    def forward_decoder(self, latents: Latents) -> tuple[Tensor, Tensor]:
        """Decoded tokens of all patches: [N, La, D'] and [N, Lv, D']."""
        x = self.decoder_embed(latents.joint)
        count = latents.masking_a.keep.shape[1]
        a = self._restored(x[:, :count], latents.masking_a)
        v = self._restored(x[:, count:], latents.masking_v)
        a = a + self.decoder_pos_embed_a + self.decoder_modality_a
        v = v + self.decoder_pos_embed_v + self.decoder_modality_v
        sound = a.shape[1]
        x = torch.cat([a, v], dim=1)
        for block in self.decoder_blocks:
            x = block(x)
        x = self.decoder_norm(x)
        return x[:, :sound], x[:, sound:]

    def _restored(self, visible: Tensor, masking: Masking) -> Tensor:
        """Visible tokens and mask tokens in the order of the patches."""
        missing = masking.hidden.shape[1]
        tokens = self.mask_token.expand(len(visible), missing, -1).to(visible.dtype)
        return take(torch.cat([visible, tokens], dim=1), masking.restore)

    def forward_loss(
        self,
        patches_a: Tensor,
        patches_v: Tensor,
        latents: Latents,
        mae_weight: float = 1.0,
        contrastive_weight: float = 0.01,
        norm_pix_loss: bool = True,
        both_directions: bool = False,
        temperature: float = TEMPERATURE,
    ) -> Losses:
        """Weighted sum of reconstruction and contrast.

        Args:
            mae_weight: 0 leaves the reconstruction out (CAV).
            contrastive_weight: 0 leaves the contrast out (AV-MAE).
        """
        zero = latents.joint.new_zeros((), dtype=torch.float32)
        loss_a = loss_v = zero
        contrast = Contrast(zero, zero)
        if mae_weight:
            a, v = self.forward_decoder(latents)
            hidden_a, hidden_v = latents.masking_a.hidden, latents.masking_v.hidden
            loss_a = reconstruction_loss(
                self.decoder_pred_a(take(a, hidden_a)), take(patches_a, hidden_a), norm_pix_loss
            )
            loss_v = reconstruction_loss(
                self.decoder_pred_v(take(v, hidden_v)),
                channels_last(take(patches_v, hidden_v)),
                norm_pix_loss,
            )
        if contrastive_weight:
            contrast = info_nce(
                latents.audio.mean(1), latents.video.mean(1), temperature, both_directions
            )
        total = mae_weight * (loss_a + loss_v) + contrastive_weight * contrast.loss
        return Losses(total, loss_a, loss_v, contrast.loss, contrast.accuracy)

    def reconstruct(self, latents: Latents) -> tuple[Tensor, Tensor]:
        """Predicted values of all patches: [N, La, p * p] and [N, Lv, p * p * 3].

        A patch's values run row by row, those of a picture with the channel fastest.
        """
        a, v = self.forward_decoder(latents)
        return self.decoder_pred_a(a), self.decoder_pred_v(v)


def channels_last(patches: Tensor) -> Tensor:
    """[N, L, 3 * p * p] with the channel slowest -> the same values with the channel fastest."""
    return patches.unflatten(-1, (3, -1)).transpose(-1, -2).flatten(-2)
