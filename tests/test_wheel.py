"""Wheel and source archive: their contents, and a program that runs from the wheel alone."""

import dataclasses
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from cavmae.tools.benchmarks.media import make_video
from tests.conftest import SMALL
from tests.finetune.models.boxes import EXPECT, TRAINED_ON, export_model
from tests.finetune.speaker.scenes import model
from tests.test_packaging import ROOMS, ROOT, listed

BUILD_FILES = ("setup.cfg", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE",
               "CHANGELOG.md", "CITATION.cff", "constraints.txt", "docs/licences.md")  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a release, and a model in its box."""
    folder = tmp_path_factory.mktemp("source")
    unwanted = shutil.ignore_patterns("__pycache__", "*.egg-info", ".*")
    for room in (*ROOMS, "tests"):
        shutil.copytree(ROOT / room, folder / room, ignore=unwanted)
    (folder / "docs").mkdir()
    for name in BUILD_FILES:
        shutil.copy(ROOT / name, folder / name)
    box = folder / "finetune" / "models"
    for path in box.glob("*/config.json"):  # of a real release: another one would be ambiguous
        shutil.rmtree(path.parent)
    export_model(model(), box / "tiny", folder / "run")
    return folder


@pytest.fixture(scope="module")
def built(source: Path) -> Path:
    """Folder with the source archive, and the wheel that is built from it."""
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", str(source)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return source / "dist"


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        wheel.extractall(folder)
    return folder


def expected(source: Path) -> set[str]:
    """Files of the rooms in the tree, as a wheel should hold them.

    Shell scripts there are for work on the repository.
    """
    rooms = (path for room in ROOMS for path in (source / room).rglob("*"))
    return {
        f"cavmae/{path.relative_to(source)}"
        for path in rooms
        if path.is_file() and path.suffix != ".sh" and "__pycache__" not in path.parts
    }


def test_the_wheel_holds_the_rooms_and_nothing_else(source: Path, installed: Path) -> None:
    files = {str(path.relative_to(installed)) for path in installed.rglob("*") if path.is_file()}
    assert {name for name in files if ".dist-info/" not in name} == expected(source)
    for name in ("cavmae/tools/card.md.j2", "cavmae/pretrain/configs/tiny.yaml",
                 "cavmae/tools/reporting/page.css",
                 *(f"cavmae/finetune/models/tiny/{file}" for file in
                   ("config.json", "model.safetensors", "preprocessing.json", "COMPLETE",
                    "README.md"))):  # fmt: skip
        assert name in files, name
    # A namespace package is typed where each of its packages says so.
    for package in listed():
        parts = package.split(".")
        tops = ("/".join(parts[:n]) for n in range(2, len(parts) + 1))
        assert any(f"{top}/py.typed" in files for top in tops), package


def test_the_source_archive_makes_the_same_wheel_without_tests(source: Path, built: Path) -> None:
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {f"cavmae/{name}" for name in names} >= expected(source)
    assert names >= set(BUILD_FILES)
    assert not any(name.split("/")[0] in ("tests", "run", "dist") for name in names)


def test_the_wheel_separates_with_its_own_model(installed: Path, tmp_path: Path) -> None:
    film = make_video(tmp_path / "film.mp4", dataclasses.replace(SMALL, seconds=1.0))
    program = "from cavmae.tools.cli import main; main()"
    words = ["separate", str(film), "--out", "out", "--no-second-look", "--no-masks",
             "--no-overlay", "--device", "cpu"]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(installed)!r}); {program}",
         *words], cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"tiny was trained on {TRAINED_ON}; expect {EXPECT}.\n" in done.stderr
    assert '"model": "tiny"' in (tmp_path / "out" / "film" / "result.json").read_text()
