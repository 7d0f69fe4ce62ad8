"""Catalogue of the models on this machine: in the box, and in the cache of the hub."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import CachedRepoInfo, scan_cache_dir
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.errors import CacheNotFound

from cavmae.common.errors import CavmaeError
from cavmae.finetune.models.box import BoxedModel
from cavmae.pretrain.engine.about import About, read_facts
from cavmae.pretrain.engine.model_files import COMPLETE, WEIGHTS, read_hashes

# Types of exported models; others in the cache are of other libraries.
TYPES = ("cav-mae", "events", "sound-separator", "speaker")
HEAD = ("name", "type", "MB", "sha256", "license", "trained on")


class ModelRow(NamedTuple):
    """Row of the catalogue: a model's name and type, its weights, and facts about it."""

    name: str
    model_type: str
    megabytes: str
    digest: str
    license: str
    trained_on: str


def boxed_row(model: BoxedModel) -> ModelRow:
    """Row of a model in the box."""
    return _row(model.name, model.folder, model.model_type, model.about)


def cached_rows() -> tuple[str, list[ModelRow]]:
    """Folder of the hub's cache, and rows of the newest revisions of our models in it."""
    try:
        cache = scan_cache_dir()
    except CacheNotFound:
        return HF_HUB_CACHE, []
    repos = sorted(
        (repo for repo in cache.repos if repo.repo_type == "model"), key=lambda repo: repo.repo_id
    )
    rows = (_cached_row(repo) for repo in repos)
    return HF_HUB_CACHE, [row for row in rows if row is not None]


def _cached_row(repo: CachedRepoInfo) -> ModelRow | None:
    """Row of a repository of the hub; None: it holds no model of ours."""
    revisions = sorted(repo.revisions, key=lambda revision: revision.last_modified)
    if not revisions:
        return None
    folder = Path(revisions[-1].snapshot_path)
    try:
        model_type, about = read_facts(folder, "remove it from the cache")
    except (OSError, ValueError, CavmaeError):  # a configuration of another library
        return None
    if model_type not in TYPES or not (folder / WEIGHTS).is_file():
        return None
    return _row(repo.repo_id, folder, model_type, about)


def _row(name: str, folder: Path, model_type: str, about: About) -> ModelRow:
    digest = "none"
    if (folder / COMPLETE).is_file():
        try:
            digest = read_hashes(folder, f"fetch {name} again")[WEIGHTS][1][:8]
        except CavmaeError:
            digest = "damaged"
    return ModelRow(
        name,
        model_type,
        f"{(folder / WEIGHTS).stat().st_size / 1e6:.1f}",
        digest,
        about.license or "unknown",
        about.trained_on or "unknown",
    )


def table(rows: Sequence[ModelRow]) -> Iterable[str]:
    """Lines of a table with aligned columns; a line that says so where there are no rows."""
    if not rows:
        return ["  none"]
    lines = [HEAD, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEAD))]
    return [
        "  "
        + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
