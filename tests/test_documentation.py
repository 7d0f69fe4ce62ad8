"""README and the documentation's pages: blocks parse, the cheap ones run, options exist."""

import ast
import contextlib
import dataclasses
import importlib
import importlib.util
import io
import os
import re
import shlex
import subprocess
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from cavmae.common import cli
from cavmae.common.errors import UsageError
from cavmae.finetune.train import TASKS
from cavmae.tools.bench import BENCHMARKS
from cavmae.tools.cli import COMMANDS, dispatch

ROOT = Path(__file__).parents[1]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
}
# Their prose keeps the option names of the commits that were measured.
DATED = ("docs/benchmarks/", "docs/experiments/", "docs/plan.md")
BLOCK = re.compile(r"^```(\S*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
# Options of other programs that pages name.
FOREIGN = {
    "array", "multi-gpu", "num-processes", "cpu", "nproc-per-node", "nnodes", "rdzv-backend",
    "rdzv-endpoint", "local-addr", "use-fsdp", "fsdp-version", "fsdp-auto-wrap-policy",
    "fsdp-transformer-layer-cls-to-wrap", "enable-gpl", "enable-version3",
    "enable-nonfree", "help", "print-config", "config", "name", "no-name",
}  # fmt: skip
LOOP = re.compile(r"^for (\w+) in (\S+).*?; do\n(.*?)^done$", re.MULTILINE | re.DOTALL)
PREFIX = re.compile(r"^(?:\w+=(?:\"[^\"]*\"|\S+) )*(?:nice -n \d+ )?")


def blocks(language: str, page: str | None = None) -> list[tuple[str, str]]:
    """Page and text of every block in a language."""
    return [
        (name, block)
        for name, text in PAGES.items()
        for kind, block in BLOCK.findall(text)
        if kind == language and page in (None, name)
    ]


def _first_round(loop: re.Match[str]) -> str:
    return loop[3].replace(f"${loop[1]}", loop[2])


def commands(text: str) -> list[list[str]]:
    """Arguments of every command of the program in a block, with any launcher."""
    arguments = []
    for line in LOOP.sub(_first_round, text).replace("\\\n", " ").splitlines():
        words = shlex.split(PREFIX.sub("", line.strip()), comments=True)
        if "-m" in words and words[words.index("-m") + 1].startswith("cavmae."):
            place = words.index("-m") + 1
            kind = {"cavmae.pretrain.train": ["pretrain"],
                    "cavmae.finetune.train": ["finetune"]}[words[place]]  # fmt: skip
            arguments.append([*kind, *words[place + 1 :]])
        elif words[:1] == ["cavmae"]:
            arguments.append(words[1:])
    return arguments


ALL = list({tuple(words): None for _, text in blocks("sh") for words in commands(text)})


def printed(words: list[str]) -> str:
    """Run a command, which must succeed, and return its output."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        try:
            code = dispatch(words)
        except SystemExit as stop:
            code = stop.code  # type: ignore[assignment]
    assert not code, words
    return out.getvalue()


def test_the_pages_have_the_main_commands() -> None:
    names = {words[0] for words in ALL}
    assert {"shard", "check", "render-talkers", "pretrain", "finetune", "evaluate", "separate",
            "predict", "report", "export", "inpaint", "convert"} <= names  # fmt: skip


class Understood(Exception):
    """The settings of a command are complete; it is not to run."""


@pytest.mark.parametrize("words", ALL, ids=lambda words: " ".join(words)[:60])
def test_every_command_of_the_pages_is_understood(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Options exist, values are of their types, and nothing that is required is left out."""

    def stopped(settings_class: type, values: dict[str, Any], place: str = "") -> Any:
        settings = filled(settings_class, values, place)
        if not place:  # the whole, not a part
            raise Understood
        return settings

    monkeypatch.chdir(tmp_path)
    if "run/config.yaml" in words:  # an earlier run writes this file
        Path("run").mkdir()
        Path("run/config.yaml").write_text(printed(["pretrain", "--print_config"]))
    if words[0] == "models" or "--print_config" in words:  # which have no settings to fill
        assert printed(list(words))
        return
    filled = cli._filled
    monkeypatch.setattr(cli, "_filled", stopped)
    with pytest.raises(Understood):
        dispatch(words)


@pytest.mark.parametrize(
    "words",
    [
        ["make-scenes", "others", "--list", "scenes.jsonl"],
        ["bench", "labels", "--encoder", "encoder"],
        ["shard", "videos"],
    ],
)
def test_a_command_without_what_is_required_is_noticed(words: list[str]) -> None:
    with pytest.raises((SystemExit, UsageError)):
        dispatch(words)


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(SystemExit) as stop:
        dispatch([*ALL[0], "--no-such-option", "1", "--print_config"])
    assert stop.value.code == 2


def test_every_shell_block_is_a_script() -> None:
    for page, text in blocks("sh"):
        done = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True)
        assert (done.returncode, done.stderr) == (0, ""), (page, text)


def defined(path: Path) -> set[str]:
    """Names at the top of a module's source, and those of its ``__all__``."""
    names: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
            if "__all__" in names and isinstance(node.value, ast.List):
                names |= {str(ast.literal_eval(item)) for item in node.value.elts}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return names


def test_every_python_block_compiles_and_imports_what_there_is() -> None:
    for page, text in blocks("python"):
        for node in ast.walk(ast.parse(text, page)):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("cavmae"):
                continue
            path = ROOT / (node.module or "").removeprefix("cavmae.").replace(".", "/")
            files = [f for f in (path.with_suffix(".py"), path / "__init__.py") if f.is_file()]
            names = {alias.name for alias in node.names} - (defined(files[0]) if files else set())
            # An example of extending.md may import what another block of the page adds.
            assert all(f"class {name}" in PAGES[page] for name in names), (page, node.module, names)


def test_every_member_of_the_reference_exists() -> None:
    """Sphinx leaves out a member that is not there without a word."""
    documented = re.findall(
        r"autoclass:: (\S+)\n(?:   :\S+:.*\n)*?   :members: (.+)", PAGES["docs/reference/python.md"]
    )
    assert len(documented) > 3
    for path, names in documented:
        module, name = path.rsplit(".", 1)
        documented_class = getattr(importlib.import_module(module), name)
        for member in names.split(", "):
            assert getattr(documented_class, member).__doc__, f"{path}.{member}"


def test_every_block_names_a_language_that_is_tested() -> None:
    for page, text in PAGES.items():
        for kind, _ in BLOCK.findall(text):
            assert kind in {"sh", "python", "yaml", "text"} or kind.startswith("{"), (page, kind)
    for page, text in blocks("yaml"):
        assert isinstance(yaml.safe_load(text), dict), page


@cache
def reference() -> ModuleType:
    """The extension that generates the reference of commands."""
    path = ROOT / "docs/_ext/command_reference.py"
    spec = importlib.util.spec_from_file_location("command_reference", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def options() -> set[str]:
    """Names of all options of all commands, with hyphens, and of all entries of registries."""
    names = {"finetune": TASKS, "bench": BENCHMARKS}
    found = set()
    for command in COMMANDS:
        for words in [[command, task] for task in names.get(command, ())] or [[command]]:
            actions = reference().parser_of(words)._actions
            found |= {action.dest.replace("_", "-") for action in actions}
    for prefixes, registry in reference().REGISTRIES.items():
        for prefix in prefixes.split(", "):
            for name in registry:
                fields = dataclasses.fields(registry.options(name))
                found |= {f"{prefix[2:]}.{f.name.replace('_', '-')}" for f in fields}
                found.add(prefix[2:])
    return found


@pytest.mark.parametrize("page", [name for name in PAGES if not name.startswith(DATED)])
def test_every_option_in_prose_exists(page: str) -> None:
    for text in re.findall(r"`([^`\n]+(?:\n[^`\n]+)?)`", BLOCK.sub("", PAGES[page])):
        for option in re.findall(r"(?<![\w-])--([a-z][\w.-]*)", text):
            name = option.rstrip(".").replace("_", "-")
            plain = re.sub(r"(^|\.)no-", r"\1", name)
            assert {name, plain} & (options() | FOREIGN), f"{page}: --{option}"


def test_a_wrong_option_in_prose_is_noticed() -> None:
    assert "data.batch-size" in options()
    assert not {"data.batch", "model.encoder-size"} & (options() | FOREIGN)


def test_every_measurement_has_its_date_machine_and_commit() -> None:
    pages = [name for name in PAGES if name.startswith("docs/benchmarks/") and "index" not in name]
    assert len(pages) > 15
    for page in pages:
        facts = dict(
            re.findall(r"^\| (Date|Machine|Commit) \| (.+) \|$", PAGES[page], re.MULTILINE)
        )
        assert set(facts) == {"Date", "Machine", "Commit"}, page
        assert re.match(r"20\d\d-\d\d-\d\d", facts["Date"]), page


def test_pages_are_wrapped_and_the_short_ones_stay_short() -> None:
    assert len(PAGES["README.md"].split()) <= 1200
    assert len(PAGES["docs/results.md"].splitlines()) <= 120
    for page, text in PAGES.items():
        if page == "docs/plan.md":
            continue
        printed_lines = {x for _, block in blocks("text", page) for x in block.splitlines()}
        long = [x for x in text.splitlines() if len(x) > 100 and not x.startswith(("|", "!", ":"))]
        long = [x for x in long if x not in printed_lines]
        assert long == [], page


def test_links_of_readme_lead_to_files() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", PAGES["README.md"])
    local = [link for link in links if "://" not in link]
    assert len(local) > 10
    assert [link for link in local if not (ROOT / link).is_file()] == []


@pytest.mark.skipif("CAVMAE_MEDIA" not in os.environ, reason="CAVMAE_MEDIA: no real recordings")
def test_videos_to_shards_to_batches_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    media = Path(os.environ["CAVMAE_MEDIA"])
    Path("media").mkdir()
    for name in ("scenes", "grid"):
        Path("media", name).symlink_to(media / name)
    rows = ["path,speaker,labels,masks"] + [
        f"grid/{clip.name},{clip.stem},talking;indoors,grid/masks/{clip.stem}"
        for clip in sorted((media / "grid").glob("*.mpg"))
    ]
    Path("media/grid.csv").write_text("\n".join(rows) + "\n")
    page = "docs/guides/shard.md"
    first = next(text for _, text in blocks("sh", page) if "cavmae shard media/scenes" in text)
    output = "".join(printed(words) for words in commands(first))
    expected = "\n".join(text for _, text in blocks("text", page))
    facts = re.compile(r"(Data set|Samples|Inputs|Duration|Frames|Decoders|Silence):")
    lines = [line for line in expected.splitlines() if facts.match(line)]  # without speeds
    assert len(lines) >= 6
    assert [line for line in lines if line not in output] == []
    space: dict[str, object] = {}
    loading = blocks("python", "docs/guides/load.md")
    assert len(loading) == 2
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        for name, text in loading:
            exec(compile(text, name, "exec"), space)
    assert f"prints `{out.getvalue().splitlines()[0]}`" in PAGES["docs/guides/load.md"]
