"""The page of licences names every direct dependency, with the extras that ask for it."""

import configparser
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROW = re.compile(r"^\| ([\w.-]+) \| ([^|]+) \|(?: ([^|]+) \|)?$", re.MULTILINE)


def names(text: str) -> list[str]:
    lines = (line.strip() for line in text.splitlines())
    return [re.split(r"[\[>=<;]", line)[0] for line in lines if line and line[0] != "#"]


def test_every_direct_dependency_has_a_licence() -> None:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    core_page, extras_page = (
        (ROOT / "docs/licences.md").read_text().split("\n## Core")[1].split("\n## Extras")
    )
    core = [name for name, _, _ in ROW.findall(core_page) if name != "package"]
    assert sorted(core) == sorted(names(parser["options"]["install_requires"]))
    wanted: dict[str, set[str]] = {}
    for extra, text in parser["options.extras_require"].items():
        for name in names(text):
            wanted.setdefault(name, set()).add(extra)
    listed = {
        name: set(re.findall(r"`(\w+)`", extras))
        for name, extras, _ in ROW.findall(extras_page)
        if name != "package"
    }
    assert listed == wanted
    # A direct dependency of the core under the GPL needs a decision, not a row.
    assert "GPL" not in core_page
