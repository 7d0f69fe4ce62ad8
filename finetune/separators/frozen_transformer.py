"""Frozen transformer: blocks of a pretrained CAV-MAE audio branch inside a multichannel separator.

After the variant of the frame transformer with the layers of BERT
(https://github.com/carperbr/frame-transformer): the pretrained blocks run on several channels that
share them, between multichannel linear layers that learn; a map of positions is another input
channel. Differences: the blocks are those of :class:`cavmae.pretrain.blocks.Block`, unchanged, so a
channel alone gives what the source gives; frames of the STFT take the place of patches; unfreezing
goes from the outermost blocks inwards.
Shapes: N mixtures, C channels, B bins, T' frames, F width of a block.
"""

import torch
from torch import Tensor, nn

from cavmae.common.errors import UsageError
from cavmae.finetune.separators.map_separator import INPUTS, MapSeparator
from cavmae.finetune.separators.multichannel import MultichannelLinear
from cavmae.finetune.separators.settings import FrozenTransformerOptions
from cavmae.pretrain.blocks import Block, unused_norm_parameters
from cavmae.pretrain.factory import load_named_weights
from cavmae.pretrain.positions import sin_cos
from cavmae.pretrain.weights import load_weights

PREFIX = "blocks_a."  # of the audio branch's weights in a CAV-MAE


class FrozenTransformer(MapSeparator):
    """Separator with the blocks of an audio branch as its trunk.

    The constructor gives the blocks random weights; :meth:`load_pretrained` loads the branch's.

    Args:
        options: of the entry.
        width: D.
    """

    def __init__(self, options: FrozenTransformerOptions, width: int):
        channels, bins = options.channels, self.stft.bins
        super().__init__(options.fusion, width, channels, channels * options.width)
        self.options = options
        self.embedding = MultichannelLinear(INPUTS + 1, channels, bins, options.width)
        self.blocks = nn.ModuleList(
            Block(options.width, options.block_heads, options.mlp_ratio)
            for _ in range(options.layers)
        )
        self.out = MultichannelLinear(channels, channels, options.width, bins)
        for parameter in unused_norm_parameters(self.blocks, (None,)):
            parameter.requires_grad_(False)
        for number, block in enumerate(self.blocks):
            if self._depth(number) >= options.unfreeze_layers:
                block.requires_grad_(False)

    def _depth(self, number: int) -> int:
        """Blocks between a block and the nearer end."""
        return min(number, len(self.blocks) - 1 - number)

    def lr_scale(self, name: str) -> float:
        """See :meth:`VoiceSeparator.lr_scale`."""
        return self.options.unfreeze_lr_scale if name.startswith("blocks.") else 1.0

    def lr_start(self, name: str) -> float:
        """See :meth:`VoiceSeparator.lr_start`: evenly spaced, from the outermost blocks inwards."""
        kind, number, *_ = name.split(".")
        if kind != "blocks":
            return 0.0
        first = self.options.unfreeze_from
        depth = min(self._depth(int(number)), self.options.unfreeze_layers)
        return first + (1 - first) * depth / max(1, self.options.unfreeze_layers)

    def load_pretrained(self) -> None:
        """See :meth:`VoiceSeparator.load_pretrained`."""
        options = self.options
        if not options.encoder:
            return
        config, weights = load_named_weights(options.encoder)
        own = {"width": options.width, "heads": options.block_heads, "mlp_ratio": options.mlp_ratio}
        source = {name: getattr(config, name) for name in own}
        if own != source or options.layers > config.depth:
            raise UsageError(
                f"frozen-transformer: the audio branch of {options.encoder} has {config.depth} "
                f"blocks of width {config.width} with {config.heads} heads and mlp_ratio "
                f"{config.mlp_ratio:g}: set the separator's options layers (at most that), width, "
                "heads and mlp_ratio to those."
            )
        wanted = self.blocks.state_dict()
        branch = {k.removeprefix(PREFIX): v for k, v in weights.items() if k.startswith(PREFIX)}
        load_weights(self.blocks, {key: v for key, v in branch.items() if key in wanted})

    def forward_blocks(self, x_nctf: Tensor) -> Tensor:
        """Blocks on each channel alone: [N, C, T', F], of the same shape."""
        x = x_nctf.flatten(0, 1)
        for block in self.blocks:
            x = block(x)
        return x.unflatten(0, x_nctf.shape[:2])

    def forward_trunk(self, x_ncbt: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`MapSeparator.forward_trunk`."""
        n, _, bins, frames = x_ncbt.shape
        places = torch.arange(frames, device=x_ncbt.device, dtype=torch.float64)
        positions = sin_cos(bins, places).to(x_ncbt.dtype).expand(n, 1, -1, -1)
        x_nctf = self.embedding(torch.cat([x_ncbt.mT, positions], dim=1))
        x_nctf = self.forward_blocks(x_nctf)
        out: Tensor = self.out(x_nctf)
        return out.mT, x_nctf.transpose(1, 2).flatten(2)
