"""`cavmae models`: the box and the hub's cache, without PyTorch and without a network."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from cavmae.common.files import sha256_of
from cavmae.tools.catalogue import TYPES
from cavmae.tools.publishing import USES
from tests.finetune.models.boxes import TRAINED_ON, export_model
from tests.finetune.speaker.scenes import model


def cached(cache: Path, name: str, files: Path) -> None:
    """Lays out a model as the hub's library keeps it."""
    repo = cache / f"models--{name.replace('/', '--')}"
    snapshot = repo / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("a" * 40)
    (repo / "blobs").mkdir()
    for file in files.iterdir():
        blob = repo / "blobs" / sha256_of(file)
        shutil.copy(file, blob)
        (snapshot / file.name).symlink_to(blob)


def listed(cache: Path, box: Path) -> str:
    code = (
        "import sys; from pathlib import Path\n"
        "from cavmae.finetune.models import box\n"
        "from cavmae.tools import models\n"
        f"box.BOX = Path({str(box)!r})\n"
        "assert models.main([]) == 0\n"
        "assert not sys.modules.keys() & {'torch', 'av', 'matplotlib'}"
    )
    known = {"HF_HUB_CACHE": str(cache), "HF_ENDPOINT": "http://127.0.0.1:9"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | known, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_box_and_the_cache(tmp_path: Path) -> None:
    folder = export_model(model(), tmp_path / "box" / "tiny", tmp_path / "run")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "config.json").write_text('{"model_type": "bert"}')
    (foreign / "model.safetensors").write_bytes(b"x")
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "config.json").write_text('{"model_type"')
    cache = tmp_path / "cache"
    cached(cache, "me/mine", folder)
    cached(cache, "them/bert", foreign)
    cached(cache, "them/damaged", damaged)
    in_box, in_cache = listed(cache, tmp_path / "box").split("\nIn the cache")
    size = f"{(folder / 'model.safetensors').stat().st_size / 1e6:.1f}"
    facts = [
        "speaker", size, sha256_of(folder / "model.safetensors")[:8], "cc-by-4.0", TRAINED_ON,
    ]  # fmt: skip
    for name, text in (("tiny", in_box), ("me/mine", in_cache)):
        rows = [line for line in text.splitlines() if line.startswith(f"  {name} ")]
        assert [row.split(maxsplit=5) for row in rows] == [[name, *facts]]
    assert "them/" not in in_cache


def test_without_any_model(tmp_path: Path) -> None:
    text = listed(tmp_path / "none", tmp_path / "nothing")
    assert text.count("  none\n") == 2


def test_all_exported_types_are_listed() -> None:
    assert set(TYPES) == set(USES)
