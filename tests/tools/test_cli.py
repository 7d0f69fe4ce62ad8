import json
import subprocess
import sys
from pathlib import Path

import pytest

from cavmae.common.cli import parse, parser, run
from cavmae.common.errors import UsageError
from cavmae.datasets.format.manifest import Manifest
from cavmae.finetune.train import TASKS
from cavmae.tools.bench import BENCHMARKS
from cavmae.tools.cli import COMMANDS, dispatch


def program(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cavmae.tools.cli", *words],
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_without_a_command_all_commands_are_listed() -> None:
    result = program()
    assert result.returncode == 2
    for command in COMMANDS:
        assert command in result.stdout
    assert program("--help").returncode == 0


def test_an_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(dispatch, ["nonsense"]) == 2
    assert "nonsense" in capsys.readouterr().err


ALL_COMMANDS = [
    *([name] for name in COMMANDS),
    *(["finetune", task] for task in TASKS),
    *(["bench", benchmark] for benchmark in BENCHMARKS),
]
# They take seconds to import, most of them because they import PyTorch.
HEAVY = {"accelerate", "av", "matplotlib", "scipy", "soundfile", "timm", "torch", "torchaudio",
         "torchmetrics", "torchvision", "webdataset"}  # fmt: skip


def help_in_one_process(commands: list[list[str]]) -> list[tuple[str, list[str]]]:
    """Prints the help of commands; returns each output and the heavy modules imported so far."""
    code = (
        "import contextlib, io, json, sys\n"
        "from cavmae.tools.cli import dispatch\n"
        "results = []\n"
        f"for words in {commands}:\n"
        "    with contextlib.redirect_stdout(io.StringIO()) as out:\n"
        "        with contextlib.suppress(SystemExit):\n"
        "            dispatch([*words, '--help'])\n"
        f"    results.append((out.getvalue(), sorted(sys.modules.keys() & {HEAVY})))\n"
        "print(json.dumps(results))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    return [(text, modules) for text, modules in json.loads(done.stdout)]


def test_help_of_every_command_imports_nothing_heavy() -> None:
    results = help_in_one_process(ALL_COMMANDS)
    for words, (text, modules) in zip(ALL_COMMANDS, results, strict=True):
        assert text.startswith(f"usage: cavmae {' '.join(words)}"), words
        assert not modules, words


def test_help_as_a_program() -> None:
    result = program("shard", "--help")
    assert result.returncode == 0
    assert result.stdout.startswith("usage: cavmae shard")


def test_a_folder_without_a_data_set_exits_with_1_and_one_sentence(tmp_path: Path) -> None:
    result = program("check", str(tmp_path))
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert str(tmp_path) in result.stderr


def test_options_with_dashes_and_underscores() -> None:
    arguments = parser("x", "test")
    arguments.add_argument("--some_option", type=int, default=1)
    arguments.add_argument("rest", nargs="*")
    assert parse(arguments, ["--some-option", "2"]).some_option == 2
    assert parse(arguments, ["--some_option=3"]).some_option == 3
    assert parse(arguments, ["--some-option=4", "a-b", "--", "--x-y"]).rest == ["a-b", "--x-y"]


def test_an_options_value_may_hold_options() -> None:
    arguments = parser("x", "test")
    arguments.add_argument("--more", type=str, default="")
    value = "--loop.log-every 3 --a_b c-d"
    assert parse(arguments, ["--more", value]).more == value
    assert parse(arguments, [f"--more={value}"]).more == value


@pytest.mark.parametrize(
    "words", [["--flag", "x"], ["x", "--flag"], ["--flag", "true", "x"], ["--flag=true", "x"]]
)
def test_a_flag_may_stand_alone(words: list[str]) -> None:
    arguments = parser("x", "test")
    arguments.add_argument("--flag", type=bool, default=False)
    arguments.add_argument("rest", nargs="*")
    options = parse(arguments, words)
    assert (options.flag, options.rest) == (True, ["x"])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("predict x --model y --classes a", "--classes a: a list such as '[a]', each of it text, "),
        ("separate x --av-offset nan", "--av-offset nan: a number or auto is expected."),
        ("separate x --target.box 1,2,3", "--target.box [1, 2, 3]: a list of 4 numbers, such as "),
        ("separate x --rate 44100", "--rate 44100: 16000 or input is expected."),
        ("separate x --video-stream a", "--video-stream a: a whole number or null is expected."),
        ("separate x --overlya", "There is no option --overlya; is --overlay meant? `cavmae se"),
        ("separate x --no-overlya=1", "There is no option --no-overlya; is --no-overlay meant? "),
        ("separate x --nothing", "There is no option --nothing. `cavmae separate --help` lists "),
        ("separate x --out", "--out: expected one argument. `cavmae separate --help` lists the o"),
        ("check x y", "There is no place for the argument 'y'; `cavmae check --help` lists the o"),
        ("make-scenes x", "--list and --count are missing; `cavmae make-scenes --help` lists the "),
        ("make-scenes x --list y --count 1 --compose.people [1,1]", "--compose.people [1, 1]: a l"),
        ("make-footage x --out y --kinds [cuts]", "--kinds cuts: a list such as '[plain]', each "),
        ("separate", "VIDEO is missing; `cavmae separate --help` lists the options."),
    ],
)
def test_a_refused_option_is_one_sentence(
    words: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        dispatch(words.split())
    assert stop.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"cavmae: {sentence}")
    assert printed.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    [
        ["", "--out", "o"],
        ["a", "--out", ""],
        ["a", "--out="],
        ["--out", "o", "--", ""],
        ["a", "--config", ""],
    ],
)
def test_an_empty_argument_is_not_the_current_folder(words: list[str]) -> None:
    with pytest.raises(UsageError, match="is empty, as of a variable that is not set"):
        dispatch(["separate", *words])


def test_a_file_in_the_way_of_a_folder_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], data_set: Manifest
) -> None:
    (tmp_path / "file").touch()
    for words in (
        ["check", data_set.folder, "--out", "FILE"],
        ["make-footage", data_set.folder, "--out", "FILE"],
        ["make-scenes", data_set.folder, "--list", "FILE/a.jsonl", "--count", "1"],
        ["demo", "--out", "FILE"],
    ):
        words = [word.replace("FILE", str(tmp_path / "file")) for word in words]
        assert run(dispatch, words) == 2
        printed = capsys.readouterr().err
        assert "cannot be a folder (a file is in its place): name another one." in printed
        assert printed.count("\n") == 1


def test_settings_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("profile: speakers\nworkers: 3\n")
    result = program("shard", "x", "--out", "o", "--config", str(tmp_path / "c.yaml"),
                     "--workers", "4", "--print_config")  # fmt: skip
    assert result.returncode == 0
    assert "profile: speakers" in result.stdout
    assert "workers: 4" in result.stdout
