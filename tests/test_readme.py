"""Commands of README: every command parses, and the cheap ones run as written."""

import contextlib
import io
import os
import re
import shlex
from pathlib import Path

import pytest

from cavmae.tools.cli import dispatch

README = (Path(__file__).parent.parent / "README.md").read_text()
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[str]:
    return [text for name, text in BLOCK.findall(README) if name == language]


def commands(text: str) -> list[list[str]]:
    """Arguments of every command of the program in a block, with any launcher."""
    arguments = []
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if "-m" in words and words[words.index("-m") + 1].startswith("cavmae."):
            place = words.index("-m") + 1
            kind = {"cavmae.pretrain.train": ["pretrain"],
                    "cavmae.finetune.train": ["finetune"]}[words[place]]  # fmt: skip
            arguments.append([*kind, *words[place + 1 :]])
        elif words[:1] == ["cavmae"]:
            arguments.append(words[1:])
    return arguments


ALL = [words for text in blocks("sh") for words in commands(text)]


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


def test_readme_has_the_main_commands() -> None:
    names = {words[0] for words in ALL}
    assert {"shard", "check", "render-talkers", "pretrain", "finetune", "evaluate", "separate",
            "predict", "report", "export", "inpaint", "convert"} <= names  # fmt: skip


@pytest.mark.parametrize("words", ALL, ids=lambda words: " ".join(words)[:60])
def test_every_command_of_readme_is_understood(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if "run/config.yaml" in words:  # an earlier run writes this file
        Path("run").mkdir()
        Path("run/config.yaml").write_text(printed(["pretrain", "--print_config"]))
    assert printed([*words, "--print_config"])
    with pytest.raises(SystemExit) as stop:  # an unknown option is refused
        dispatch([*words, "--no-such-option", "1", "--print_config"])
    assert stop.value.code == 2


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
    first = next(text for text in blocks("sh") if "cavmae shard media/scenes" in text)
    output = "".join(printed(words) for words in commands(first))
    # Lines with a speed differ from README's.
    expected = README[README.index(first) :].split("```")[2:6]
    for line in "\n".join(expected).splitlines():
        if re.match(r"(Data set|Samples|Inputs|Duration|Frames|Decoders|Silence):", line):
            assert line in output, line
    space: dict[str, object] = {}
    loading = [text for text in blocks("python") if "datasets" in text]
    assert len(loading) == 2
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        for text in loading:
            exec(compile(text, "README.md", "exec"), space)
    assert "torch.Size([4, 256, 128]) torch.Size([4, 8, 3, 224, 224])" in out.getvalue()
    assert f"prints `{out.getvalue().splitlines()[0]}`" in README
