"""Untrusted configurations: refused in one sentence, before anything in them runs."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cavmae.common.cli import fill, parse, parse_settings, parser, run
from cavmae.common.errors import UsageError

EVIL = 'print("THE MODULE OF THE CONFIGURATION RAN")\nclass Evil: pass\n'


@dataclasses.dataclass(frozen=True)
class Inner:
    train: str = ""
    rate: float = 1.0
    names: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Outer:
    data: Inner = Inner()
    steps: int = 1


def command(*words: str) -> Outer:
    command_parser = parser("x", "test")
    command_parser.add_class_arguments(Outer)
    return fill(Outer, parse(command_parser, words))


def attempt(*words: str) -> int:
    return run(lambda given: command(*given) and None, words)


def test_options_are_accepted(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    expected = Outer(Inner("somewhere", 0.5, ("a", "b")), 3)
    path.write_text("# ours\ndata: {train: somewhere, rate: 0.5, names: [a, b]}\nsteps: 3\n")
    assert command("--config", str(path)) == expected
    path.write_text("data.train: somewhere\ndata.rate: 0.5\ndata.names:\n- a\n- b\nsteps: 3\n")
    assert command(f"--config={path}") == expected
    assert command("--config", str(path), "--steps", "4").steps == 4
    path.write_text(
        '{"data": {"train": "somewhere", "rate": 5e-1, "names": ["a", "b"]}, "steps": 3}'
    )
    assert command("--config", str(path)) == expected


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"data: {class_path: evil.Evil}", "there is no option data.class_path"),
        (b"data.class_path: evil.Evil", "there is no option data.class_path"),
        (b"data: {init_args: {train: x}}", "there is no option data.init_args"),
        (b"data: {train: {class_path: evil.Evil}}", "data.train takes a value"),
        (b"data: {names: [{class_path: evil.Evil}]}", "data.names takes a value"),
        (b"data: evil.Evil", "data takes options, such as data.names"),
        (b"config: other.yaml", "there is no option config"),
        (b"class_path: evil.Evil", "there is no option class_path"),
        (b"data: !!python/object/apply:os.system [id]", "tags such as"),
        (b"steps: 1\ndata: {trian: x}", "line 2: there is no option data.trian (is data.train"),
        (b"data: {train: a, train: b}", "data.train is set twice"),
        (b"data.train: a\ndata: {rate: 2}", "data is set twice"),
        (b"data: {? [a] : b}", "a key must be the name of an option"),
        (b"data: &a {train: x}\nsteps: *a", "write the values out"),
        (b"a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]", "write the values out"),
        (b"data: {names: " + b"[" * 50_000, "more than 8 levels"),
        (b"#" * 300_000, "more than 262144 bytes"),
        (b"\xff\xfed\x00", "is no UTF-8 text"),
        (b"\0\0\0", "is no YAML"),
        (b"data: [1", "is no YAML"),
        (b"data:\n\ttrain: x", "is no YAML"),
        (b"", "holds 0 documents"),
        (b"steps: 1\n---\nsteps: 2", "holds 2 documents"),
        (b"hello", "a configuration is a table"),
        (b"data: {rate: .nan}", "--data.rate is not a number"),
    ],
)  # fmt: skip
def test_other_content_is_refused_in_one_sentence(
    tmp_path: Path, content: bytes, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(content)
    assert attempt("--config", str(path)) == 2
    printed = capsys.readouterr()
    assert reason in printed.err and printed.err.count("\n") == 1 and not printed.out
    assert "c.yaml" in printed.err or "--data.rate" in printed.err


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--data", '{"class_path": "evil.Evil"}'], "--data takes no value"),
        (["--data=evil.Evil"], "--data takes no value"),
        (["--config", '{"data": {"class_path": "evil.Evil"}}'], "cannot be read"),
        (["--config", "."], "no regular file"),
        (["--config"], "cannot be read"),
        (["--data.rate", ".nan"], "--data.rate is not a number"),
    ],
)  # fmt: skip
def test_arguments_do_not_bypass_the_check(
    words: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert attempt(*words) == 2
    printed = capsys.readouterr().err
    assert reason in printed and printed.count("\n") == 1


def test_no_module_is_imported_from_the_working_folder(tmp_path: Path) -> None:
    """A program started with -m has the working folder on its module path."""
    (tmp_path / "evil.py").write_text(EVIL)
    (tmp_path / "c.yaml").write_text("data: {class_path: evil.Evil}")
    (tmp_path / "nested.yaml").write_text("config: c.yaml")
    ways = (
        ["--config", "c.yaml"], ["--config", "nested.yaml"], ["--conf", "c.yaml"],
        ["--data", "evil.Evil"], ["--data.class_path", "evil.Evil"],
    )  # fmt: skip
    script = (
        "import sys, json; sys.path.insert(0, '')\n"
        "from tests.common.test_config_files import attempt\n"
        "for words in json.loads(sys.argv[1]):\n"
        "    try: print('code', attempt(*words))\n"
        "    except SystemExit as end: print('code', end.code)\n"
        "import evil\n"  # it could have been
    )
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps(ways)],
        cwd=tmp_path, capture_output=True, text=True, check=True,
        env={"PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert done.stdout == "code 2\n" * len(ways) + "THE MODULE OF THE CONFIGURATION RAN\n"


@dataclasses.dataclass(frozen=True)
class Sets:
    """A list of tables.

    Args:
        sets: one, or several.
        rate: of something.
    """

    sets: list[str | dict[str, str | float]] | str = ""
    rate: float = 1.0


@dataclasses.dataclass(frozen=True)
class WithSets:
    """Options.

    Args:
        data: the first.
    """

    data: Sets = Sets()


@pytest.mark.parametrize(
    "text",
    [
        "data: {sets: [a, {path: b, weight: 2}], rate: 3}",
        "data:\n  rate: 3\n  sets:\n  - a\n  - path: b\n    weight: 2.0\n",
        "data.sets: [a, {path: b, weight: 2}]\ndata.rate: 3\n",
    ],
)
def test_lists_of_tables_where_an_option_is_such_a_list(tmp_path: Path, text: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    expected = WithSets(Sets(["a", {"path": "b", "weight": 2.0}], 3.0))
    for words in (
        ["--config", str(path)],
        ["--data.sets", "[a, {path: b, weight: 2}]", "--data.rate", "3"],
    ):
        command_parser = parser("x", "test")
        settings, options = parse_settings(command_parser, WithSets, words)
        assert settings == expected
        path.write_text(command_parser.dump(options, skip_unset=False, skip_validation=True))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("data: {sets: {path: b}}", "data.sets takes a value, not options"),
        ("data: {sets: [{path: {class_path: evil.Evil}}]}", "in the list data.sets takes plain"),
        ("data: {sets: [{path: [x]}]}", "in the list data.sets takes plain"),
        ("data: {sets: [{path: x, path: y}]}", "path is set twice"),
        ("data: {sets: [{[x]: y}]}", "line 1"),
        ("data: {rate: [{path: x}]}", "data.rate takes a value, not options"),
    ],
)
def test_tables_elsewhere_or_of_tables(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=re.escape(reason)):
        parse_settings(parser("x", "test"), WithSets, ["--config", str(path)])
