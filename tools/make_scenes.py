"""`cavmae make-scenes SHARDS --list FILE --count N`: a fixed list of scenes for evaluation."""

import dataclasses
import logging
import random
from collections.abc import Sequence
from pathlib import Path

from cavmae.common.cli import module_main, parse_settings, parser
from cavmae.common.errors import UsageError
from cavmae.common.files import make_folder
from cavmae.common.settings import SeedSettings
from cavmae.datasets.mixtures.scene_spec import ComposeSettings

log = logging.getLogger("cavmae")


@dataclasses.dataclass(frozen=True)
class SceneListSettings(SeedSettings):
    """Options of the scenes.

    Args:
        compose: distribution of the scenes; clips keep their own speed.
        voice_pairs: follow each scene by its twin of the same frames, in which the voice of one
            person is replaced by that of a speaker who is not in the scene. All people talk, and
            there is no other sound; ``--count`` counts both.
    """

    compose: ComposeSettings = ComposeSettings()
    voice_pairs: bool = False


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
        UsageError: the file exists, or the count is below 1 or, of pairs, odd.
        CavmaeError: the shards cannot be used for such scenes.
    """
    if count < 1:
        raise UsageError(f"--count {count}: at least one scene.")
    if settings.voice_pairs and count % 2:
        raise UsageError(f"--count {count}: --voice-pairs needs an even number of scenes.")
    if path.exists():
        raise UsageError(
            f"{path} is there already: results on it would not compare. Name another file."
        )
    make_folder(path.parent, "--list:")
    from cavmae.datasets.format.manifest import Manifest
    from cavmae.datasets.mixtures.clip_pool import ClipPool
    from cavmae.datasets.mixtures.sampler import SceneSampler
    from cavmae.datasets.mixtures.scene_stream import write_list
    from cavmae.datasets.mixtures.voice_pairs import paired_settings, replace_target_voice

    # Evaluation is on speech at its natural speed.
    compose = dataclasses.replace(settings.compose, speed=0.0)
    if settings.voice_pairs:
        compose = paired_settings(compose)
    pool = ClipPool(Manifest.load(shards))
    sampler = SceneSampler(pool, compose)
    scenes = []
    for number in range(count // 2 if settings.voice_pairs else count):
        rng = random.Random(f"list {settings.seed} {number}")
        scenes.append(sampler.sample(rng))
        if settings.voice_pairs:
            scenes.append(replace_target_voice(scenes[-1], pool, compose, rng))
    write_list(path, compose, scenes)
    log.info("Wrote %d scenes to %s.", count, path)


if __name__ == "__main__":
    module_main(main)
