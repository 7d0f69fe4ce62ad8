"""FLOPs of a training step, counted from the configuration of the model.

Two for each multiplication with addition; linear maps and attention only, as is customary. The
backward pass counts twice the forward pass.
"""

import math

from cavmae.pretrain.config import CAVMAEConfig
from cavmae.pretrain.masking import num_visible, window_side
from cavmae.pretrain.settings import ObjectiveSettings


def block_macs(tokens: float, width: int, mlp_ratio: float = 4.0) -> float:
    """Multiply-accumulates of a block with self-attention."""
    return tokens * width**2 * (4 + 2 * mlp_ratio) + 2 * tokens**2 * width


def cross_block_macs(queries: float, seen: float, width: int, mlp_ratio: float = 4.0) -> float:
    """Multiply-accumulates of a block with cross-attention."""
    maps = queries * width**2 * (2 + 2 * mlp_ratio) + 2 * seen * width**2
    return maps + 2 * queries * seen * width


def forward_macs(c: CAVMAEConfig, objective: ObjectiveSettings, frames: int = 1) -> float:
    """Multiply-accumulates of a forward pass, for one clip.

    Args:
        frames: of the clip that the frame contrast looks at.
    """
    pixels = c.patch**2
    all_a, all_v = c.audio_grid[0] * c.audio_grid[1], c.image_grid[0] * c.image_grid[1]
    a, v = (
        num_visible(all_a, objective.mask_ratio_audio),
        num_visible(all_v, objective.mask_ratio_image),
    )

    seen_v = math.prod(window_side(c.image_grid, objective.frame_window))

    def branch(tokens: int, values: int) -> float:
        return tokens * values * c.width + c.depth * block_macs(tokens, c.width, c.mlp_ratio)

    def joint(tokens: int) -> float:
        return c.joint_depth * block_macs(tokens, c.width, c.mlp_ratio)

    total = 0.0
    masked = objective.contrastive_weight > 0 and objective.contrast_view == "masked"
    if objective.mae_weight or masked:
        total += branch(a, pixels) + branch(v, 3 * pixels)
    if masked:
        total += joint(a) + joint(v)
    if objective.mae_weight:
        masked_a, masked_v = all_a - a, all_v - v
        if c.decoder == "cross":
            masked_a = round(masked_a * objective.decode_fraction)
            masked_v = round(masked_v * objective.decode_fraction)
            block = cross_block_macs(masked_a + masked_v, a + v, c.decoder_width, c.mlp_ratio)
        else:
            block = block_macs(all_a + all_v, c.decoder_width, c.mlp_ratio)
        total += joint(a + v) + (a + v) * c.width * c.decoder_width + c.decoder_depth * block
        total += c.decoder_width * pixels * (masked_a + 3 * masked_v)
    if objective.needs_unmasked:
        total += branch(all_a, pixels) + joint(all_a)
        total += frames * (branch(seen_v, 3 * pixels) + joint(seen_v))
    if objective.aligned_weight:
        keys = 2 * c.width**2 + 2 * c.width  # of a token that is pooled
        head = 2 * c.width**2 + c.width * c.contrast_width + 8 * c.contrast_width**2
        total += all_a * keys + c.audio_grid[1] * head + frames * (seen_v * keys + head)
    return total


def training_flops(c: CAVMAEConfig, objective: ObjectiveSettings, frames: int = 1) -> float:
    """FLOPs of a forward and a backward pass, for one clip."""
    return 6 * forward_macs(c, objective, frames)
