"""Control characters of untrusted names are escaped when printed."""

import logging
import os
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cavmae.common.cli import output, parse, parser, run
from cavmae.common.errors import CavmaeError
from cavmae.common.progress import Progress
from cavmae.common.quoting import visible

log = logging.getLogger("cavmae")
EVIL = "a\x1b]0;title\x07\x9b2J\x7f\nDone.\r\u202egpj.\u2066x"
ESCAPED = r"a\x1b]0;title\x07\x9b2J\x7f\nDone.\r\u202egpj.\u2066x"


def test_control_characters_are_escaped() -> None:
    assert visible(EVIL) == ESCAPED
    assert visible(EVIL, keep="\n") == ESCAPED.replace(r"\n", "\n")
    assert visible(os.fsdecode(b"caf\xe9")) == r"caf\xe9"
    assert visible("\ud800\uffff") == r"\ud800\uffff"
    for plain in ("C:\\a $1 _x %s", "日本語", "שלום", "👩‍👩‍👧", "e\u0301"):
        assert visible(plain) == plain


@given(st.text(st.characters(), max_size=30))
def test_any_text_can_be_printed_and_stand_in_xml(text: str) -> None:
    escaped = visible(text)
    assert escaped.encode().decode() == escaped
    assert len(escaped.splitlines()) <= 1
    element = ElementTree.Element("a")
    element.text = escaped
    assert ElementTree.fromstring(ElementTree.tostring(element)).text == (escaped or None)


def test_messages_and_results(capsys: pytest.CaptureFixture[str]) -> None:
    def command(words: object) -> int:
        log.info("\n%d. %s", 3, Path(EVIL))
        log.info("%(name)s", {"name": EVIL})
        log.warning("%s and %.1f", OSError(2, "No such file", "x\x1b[2J"), 1.5)
        output("first\n%s %d", EVIL, 4)
        output("100 %")
        raise CavmaeError(f"{EVIL} is damaged.")

    assert run(command, []) == 1
    printed = capsys.readouterr()
    assert printed.err.splitlines() == [
        "",
        f"3. {ESCAPED}",
        ESCAPED,
        r"[Errno 2] No such file: 'x\x1b[2J' and 1.5",
        f"cavmae: {ESCAPED} is damaged.",
    ]
    assert printed.out == f"first\n{ESCAPED} 4\n100 %\n"


def test_names_that_are_not_utf8(capsys: pytest.CaptureFixture[str]) -> None:
    name = Path(os.fsdecode(b"caf\xe9.mp4"))

    def command(words: object) -> int:
        output("%s", name)
        log.info("%s", name)
        return 0

    assert run(command, []) == 0
    printed = capsys.readouterr()
    assert printed.out == printed.err == "caf\\xe9.mp4\n"


def test_bad_options(capsys: pytest.CaptureFixture[str]) -> None:
    command_parser = parser("x", "test")
    with pytest.raises(SystemExit):
        parse(command_parser, ["--\x1b]0;t\x07=1"])
    printed = capsys.readouterr().err
    assert "\x1b" not in printed
    assert r"\x1b]0;t\x07" in printed


def test_a_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    class Named(Progress):
        def status(self) -> str:
            return EVIL

    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with Named(2, "file\x1b[2J") as progress:
        progress.done()
        progress.done()
    printed = capsys.readouterr().err
    assert "\x1b[2J" not in printed
    assert "\x07" not in printed
    assert r"file\x1b[2J" in printed
