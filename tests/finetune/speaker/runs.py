"""Settings of short runs of `cavmae finetune speakers`, and their command lines."""

import json
import random
from pathlib import Path
from typing import Any

import yaml

from cavmae.datasets.format.manifest import Manifest
from cavmae.datasets.mixtures.clip_pool import ClipPool
from cavmae.datasets.mixtures.sampler import SceneSampler
from cavmae.datasets.mixtures.scene_spec import ComposeSettings
from cavmae.datasets.mixtures.scene_stream import write_list
from tests.pretrain.engine.running import trace

COMPOSE = {"height": 32, "width": 48, "seconds": 0.64, "people": [0.2, 0.6, 0.2]}
SETTINGS: dict[str, Any] = {
    "data": {"batch_size": 2, "workers": 0},
    "compose": COMPOSE,
    "model": {
        "slots": 4, "width": 16, "heads": 2, "query_layers": 1, "slot_layers": 1,
        "mask_width": 8, "key_frames": 2, "motion_height": 16,
        "motion_width": 24, "motion": {"name": "conv", "width": 8, "depth": 1},
        "sound.separator.width": 2,
    },
    "loss": {"points": 32},
    "optimizer": {"lr": 1e-3},
    "loop": {
        "steps": 4, "log_every": 1, "save_every": 2, "threads": 1, "tracker": "none",
    },
}  # fmt: skip


def write(manifest: Manifest) -> None:
    """Writes a data set's manifest and statistics beside its shards."""
    folder = Path(manifest.folder)
    (folder / "manifest.json").write_bytes(manifest.to_bytes())
    (folder / "stats.json").write_text(json.dumps({"fbank_mean": -5.0, "fbank_std": 3.0}))


def same_end(run: Path, other: Path) -> None:
    assert trace(run) == trace(other)
    for name in ("model.safetensors", "trainer.safetensors"):
        ends = [folder / "checkpoints" / "000000004" / name for folder in (run, other)]
        assert ends[0].read_bytes() == ends[1].read_bytes()


def words(run: Path, clips: Manifest, encoder: Path | None, **changes: Any) -> list[str]:
    settings = {part: {**values, **changes.get(part, {})} for part, values in SETTINGS.items()}
    settings["data"]["train"] = clips.folder
    settings["model"].setdefault("encoder_from", str(encoder) if encoder else None)
    path = run.parent / f"{run.name}.yaml"
    path.write_text(yaml.safe_dump(settings))
    return ["speakers", "--config", str(path), "--out", str(run)]


def listed(folder: Path, clips: Manifest, count: int = 5) -> dict[str, str]:
    settings = ComposeSettings(**{**COMPOSE, "people": (0.2, 0.6, 0.2)})  # type: ignore[arg-type]
    sampler = SceneSampler(ClipPool(clips), settings)
    path = folder / "list.jsonl"
    write_list(path, settings, [sampler.sample(random.Random(n)) for n in range(count)])
    return {"held_out": str(path), "held_out_shards": clips.folder}
