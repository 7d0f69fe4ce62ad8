"""`cavmae inpaint MODEL SHARDS --out FILE.png`: reconstructions of masked patches."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

from cavmae.common.cli import module_main, parse_settings, parser
from cavmae.common.errors import UsageError
from cavmae.common.settings import SeedSettings
from cavmae.tools.retrieve import FbankStatisticsSettings


@dataclasses.dataclass(frozen=True)
class InpaintSettings(FbankStatisticsSettings, SeedSettings):
    """Options of masking and plots.

    Args:
        clips: number of clips, from the beginning of the data set.
        mask_ratio: fraction of the patches that are masked.
        mode: structure of the audio mask.
        norm_pix_loss: the model was trained on normalized patches, as the published ones were.
    """

    clips: int = 4
    mask_ratio: float = 0.75
    mode: Literal["unstructured", "time", "freq", "tf"] = "unstructured"
    norm_pix_loss: bool = True


def main(words: Sequence[str]) -> int:
    """Draws original, masked and reconstructed clips.

    Raises:
        UsageError: an option is out of range.
        CavmaeError: the model or the shards cannot be used.
    """
    cli = parser("inpaint", "Reconstructions of masked patches of audio and video.")
    cli.add_argument("model", type=str, help="Folder of weights, or a name on the hub.")
    cli.add_argument("shards", type=str, help="Folder or URL of a data set.")
    cli.add_argument("--out", required=True, type=str, help="PNG file to write.")
    settings, options = parse_settings(cli, InpaintSettings, words)
    if not 0 < settings.mask_ratio < 1 or settings.clips < 1:
        raise UsageError("--mask-ratio must lie between 0 and 1, --clips be at least 1.")
    from cavmae.tools.evaluating.inpainting import draw_reconstructions

    return draw_reconstructions(options.model, options.shards, options.out, settings)


if __name__ == "__main__":
    module_main(main)
