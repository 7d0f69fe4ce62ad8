"""The layout of the project: rooms, packages, and what may import what."""

import ast
import configparser
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# room: rooms it may import
ROOMS = {
    "common": {"common"},
    "datasets": {"datasets", "common"},
    "pretrain": {"pretrain", "datasets", "common"},
    "finetune": {"finetune", "pretrain", "datasets", "common"},
    "tools": {"tools", "finetune", "pretrain", "datasets", "common"},
}
MODULES = sorted(p for room in ROOMS for p in (ROOT / room).rglob("*.py"))


def listed() -> dict[str, str]:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    packages = parser["options"]["packages"].split()
    folders = dict(
        line.replace(" ", "").split("=")
        for line in parser["options"]["package_dir"].strip().splitlines()
    )
    assert set(packages) == set(folders)
    return folders


def test_packages_listed_are_the_folders_with_modules() -> None:
    folders = {str(path.parent.relative_to(ROOT)) for path in MODULES}
    assert set(listed().values()) == folders
    for package, folder in listed().items():
        assert package == "cavmae." + folder.replace("/", ".")


def test_rooms_have_no_init_and_their_folders_have_one() -> None:
    for folder in listed().values():
        assert (ROOT / folder / "__init__.py").exists() == ("/" in folder), folder


def imports(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names.add(node.module or "")
            if node.module == "cavmae":
                names |= {f"cavmae.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_room_imports_only_what_it_may(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0]
    used = {name.split(".")[1] for name in imports(path) if name.startswith("cavmae.")}
    assert used <= ROOMS[room]
    assert not set(ROOMS) & imports(path)


def test_the_engine_knows_nothing_of_pretraining() -> None:
    for path in (ROOT / "pretrain" / "engine").glob("*.py"):
        used = {name for name in imports(path) if name.startswith("cavmae.pretrain")}
        assert all(name.startswith("cavmae.pretrain.engine") for name in used), path


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_modules_are_short_and_have_names_of_their_own(path: Path) -> None:
    limit = 60 if path.name == "train.py" else 420
    assert len(path.read_text().splitlines()) <= limit
    assert path.stem not in sys.stdlib_module_names
    module = ast.parse(path.read_text())
    assert ast.get_docstring(module), "a newcomer should know the file's purpose"


def test_public_classes_have_names_of_their_own() -> None:
    places: dict[str, list[str]] = {}
    for path in MODULES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    assert {name: paths for name, paths in places.items() if len(paths) > 1} == {}


def test_every_module_can_be_imported() -> None:
    for path in MODULES:
        parts = path.relative_to(ROOT).with_suffix("").parts
        importlib.import_module(".".join(["cavmae", *parts]).removesuffix(".__init__"))


def test_inference_imports_no_training() -> None:
    training = [
        "cavmae.finetune.speaker.losses", "cavmae.finetune.speaker.task", "cavmae.finetune.train",
        "cavmae.pretrain.cavmae_task", "cavmae.pretrain.engine.trainer", "accelerate", "timm",
    ]  # fmt: skip
    code = f"import sys, cavmae.finetune.inference; print(*(sys.modules.keys() & {training}))"
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert run.stdout.split() == []


def test_constraints_pin_every_direct_dependency() -> None:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    text = parser["options"]["install_requires"]
    text += "".join(parser["options.extras_require"].values())
    wanted = {
        line.split(">=")[0].split("[")[0].strip().lower() for line in text.split("\n") if line
    }
    pins = {
        line.split("==")[0].lower()
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    assert wanted <= pins


# Names that say nothing of the thing (STYLE, "Names and prose").
VAGUE = {
    "told", "found", "how", "made", "one", "shown", "heard", "look", "speak", "somebody", "nobody",
    "lot", "chance", "who", "whom",
}  # fmt: skip


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_names_say_what_a_thing_is(path: Path) -> None:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.id if isinstance(node, ast.Name) else node.attr)
        elif isinstance(node, ast.arg):
            names.add(node.arg)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
    assert names & VAGUE == set()
