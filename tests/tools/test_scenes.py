"""Sheet of composed scenes, and the benchmark of composition."""

import shutil
from pathlib import Path

import pytest

from cavmae.common.errors import UsageError
from cavmae.datasets.format.manifest import Manifest
from cavmae.datasets.mixtures.scene_spec import ComposeSettings
from cavmae.datasets.stream.shard_reader import Access
from cavmae.tools.bench import main
from cavmae.tools.checking.scenes import draw_scenes
from tests.datasets.clips import clip, data_set_of, people_of


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return people_of(tmp_path_factory.mktemp("clips") / "set")


def test_a_sheet_of_scenes(clips: Manifest, tmp_path: Path) -> None:
    compose = ComposeSettings(height=32, width=48, seconds=0.08)
    path = tmp_path / "composed.png"
    assert draw_scenes(clips, Access(), compose, 4, 0, path) == 4
    assert path.read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(UsageError, match="add people"):
        single = data_set_of(tmp_path / "one", [clip(0, person=True)])
        draw_scenes(single, Access(), compose, 4, 0, path)


def test_a_sheet_of_a_folder_of_any_name(clips: Manifest, tmp_path: Path) -> None:
    compose = ComposeSettings(height=32, width=48, seconds=0.08)
    folder = tmp_path / "a$\\frac$b _x\n"
    shutil.copytree(clips.folder, folder)
    named = Manifest.load(str(folder))
    assert draw_scenes(named, Access(), compose, 1, 0, tmp_path / "composed.png") == 1


def test_the_benchmark(clips: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (
        f"finetune --data-set {clips.folder} --batch-size 1 --steps 1 --rounds 1 "
        f"--workers 1 --device cpu --out {tmp_path / 'rows.json'}"
    )
    assert main(words.split()) == 0
    output = capsys.readouterr().out
    assert "| training step |" in output
    assert "| composing, one core |" in output
    assert "of the time for data" in output
    assert (tmp_path / "rows.json").is_file()
    with pytest.raises(UsageError, match="--data-set"):
        main(["finetune"])
