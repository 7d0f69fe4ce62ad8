"""`cavmae make-scenes SHARDS --list FILE --count N`: a fixed list of scenes for evaluation."""

import dataclasses
import logging
import random
from collections.abc import Sequence
from pathlib import Path

from cavmae.common.cli import module_main, parse_settings, parser
from cavmae.common.errors import UsageError
from cavmae.common.settings import SeedSettings
from cavmae.datasets.mixtures.scene_spec import ComposeSettings

log = logging.getLogger("cavmae")


@dataclasses.dataclass(frozen=True)
class SceneListSettings(SeedSettings):
    """Options of the scenes.

    Args:
        compose: distribution of the scenes; clips keep their own speed.
    """

    compose: ComposeSettings = ComposeSettings()


def main(words: Sequence[str]) -> int:
    """Draws scenes from shards and writes their list."""
    cli = parser("make-scenes", "Draws a fixed list of scenes for `cavmae evaluate`.")
    cli.add_argument("shards", type=str, help="Folder or URL of the data set of the scenes.")
    cli.add_argument("--list", required=True, type=str, help="JSON-lines file to write.")
    cli.add_argument("--count", required=True, type=int, help="Number of scenes.")
    settings, options = parse_settings(cli, SceneListSettings, words)
    write_scene_list(options.shards, Path(options.list), options.count, settings)
    return 0


def write_scene_list(shards: str, path: Path, count: int, settings: SceneListSettings) -> None:
    """Samples scenes and writes their specs.

    Args:
        shards: folder or URL of the data set.
        path: file of the list.
        count: number of scenes.
        settings: distribution and seed of the scenes.

    Raises:
        UsageError: the file exists, or the count is below 1.
        CavmaeError: the shards cannot be used for such scenes.
    """
    if count < 1:
        raise UsageError(f"--count {count}: at least one scene.")
    if path.exists():
        raise UsageError(
            f"{path} is there already: results on it would not compare. Name another file."
        )
    from cavmae.datasets.format.manifest import Manifest
    from cavmae.datasets.mixtures.clip_pool import ClipPool
    from cavmae.datasets.mixtures.sampler import SceneSampler
    from cavmae.datasets.mixtures.scene_stream import write_list

    # Evaluation is on speech at its natural speed.
    compose = dataclasses.replace(settings.compose, speed=0.0)
    sampler = SceneSampler(ClipPool(Manifest.load(shards)), compose)
    scenes = [
        sampler.sample(random.Random(f"list {settings.seed} {number}")) for number in range(count)
    ]
    write_list(path, compose, scenes)
    log.info("Wrote %d scenes to %s.", count, path)


if __name__ == "__main__":
    module_main(main)
