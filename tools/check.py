"""`cavmae check SHARDS`: verifies a data set, computes statistics, draws a contact sheet."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

from cavmae.common.cli import module_main, parse_settings, parser
from cavmae.common.settings import PoolSettings, SeedSettings
from cavmae.datasets.mixtures.scene_spec import ComposeSettings


@dataclasses.dataclass(frozen=True)
class CheckSettings(SeedSettings, PoolSettings):
    """Settings of a check.

    Args:
        out: folder for stats.json, contact_sheet.png and damage.jsonl; by default the data set's.
        verify: ``hash`` reads every byte of every shard, ``size`` trusts sizes.
        sheet: samples on the contact sheet; 0: none.
        compose: also draw composed.png: scenes as `cavmae finetune speakers` composes them.
        scenes: settings of their composition.
        cache_dir: folder for copies of remote shards; by default in the temporary folder.
    """

    out: str | None = None
    verify: Literal["hash", "size"] = "hash"
    sheet: int = 12
    compose: bool = False
    scenes: ComposeSettings = ComposeSettings()
    cache_dir: str | None = None


def main(words: Sequence[str]) -> int:
    """Checks a data set; see :func:`~cavmae.tools.checking.verify.check`."""
    arguments = parser("check", "Verifies a data set and reports its statistics.")
    arguments.add_argument(
        "data_set", type=str, metavar="SHARDS", help="Folder (path or URL) of the shards."
    )
    settings, options = parse_settings(arguments, CheckSettings, words)
    from cavmae.tools.checking.verify import check

    return check(options.data_set, settings)


if __name__ == "__main__":
    module_main(main)
