"""`cavmae report` on untrusted folders: no script, no file from outside."""

import base64
import contextlib
import copy
import dataclasses
import html
import json
import os
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from cavmae.common.cli import run
from cavmae.common.errors import CavmaeError
from cavmae.common.quoting import caption
from cavmae.tools.benchmarks.media import make_video
from cavmae.tools.cli import dispatch
from cavmae.tools.report import main
from cavmae.tools.reporting.audio_tracks import tracks_of
from cavmae.tools.reporting.blocks import Gallery
from cavmae.tools.reporting.charts import Line, lines
from cavmae.tools.reporting.examples import example
from cavmae.tools.reporting.fields import Faults
from cavmae.tools.reporting.page import page
from cavmae.tools.reporting.sources import Separation, sources_of
from tests.conftest import SMALL

EVIL = "<img src=x onerror=\"document.title='it ran'\"></style><script>alert(1)</script>"
SECRET = 12_345  # seed of the audio that must not get into a page
RECORD = {
    "schema": 1, "source": "film.mp4", "model": "m", "seconds": 1.0, "gain": 1.0,
    "people": [{"number": 1, "voice": "person-1.wav", "mask": None, "state": "speaking",
                "level_db": -20.0}],
    "residual": "residual.wav", "overlay": "overlay.mp4",
}  # fmt: skip
MEASURES = {
    "model": "m", "list": "l.jsonl", "cue": "none", "scenes": {"model": [1, 2]},
    "summary": {"model": {"iou": 0.81}, "frames_blanked": {"iou": None}},
}  # fmt: skip
RETRIEVAL = {"clips": 40, "audio_to_video": {"recall_at_1": 0.25, "median_rank": 3.0}}


def wave(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.1, 0.1, 16_000).astype(np.float32)


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    return make_video(path, dataclasses.replace(SMALL, seconds=1.0))


@pytest.fixture
def recording(tmp_path: Path, film: Path) -> Path:
    """A separated recording, as `cavmae separate` writes it."""
    folder = tmp_path / "recording"
    folder.mkdir()
    soundfile.write(str(folder / "person-1.wav"), wave(1), 16_000, subtype="FLOAT")
    soundfile.write(str(folder / "residual.wav"), wave(2), 16_000, subtype="FLOAT")
    shutil.copy(film, folder / "overlay.mp4")
    (folder / "result.json").write_text(json.dumps(RECORD))
    return folder


@pytest.fixture
def private(tmp_path: Path, film: Path) -> Path:
    """Files outside of all folders of a report."""
    folder = tmp_path / "private"
    folder.mkdir()
    soundfile.write(str(folder / "voice.wav"), wave(SECRET), 16_000, subtype="FLOAT")
    shutil.copy(film, folder / "film.mp4")
    with (folder / "film.mp4").open("ab") as file:
        file.write(b"\0\0\0\x10freeprivate!")
    Image.new("RGB", (8, 8), "red").save(folder / "curve.png")
    (folder / "notes.txt").write_text("a private note")
    (folder / "config.yaml").write_text("password: private note")
    (folder / "measures.json").write_text(json.dumps(MEASURES))
    return folder


def write(folder: Path, name: str, content: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(content))
    return folder


def page_of(tmp_path: Path, *folders: Path) -> str:
    out = tmp_path / "page.html"
    assert main([*map(str, folders), "--out", str(out)]) == 0
    return out.read_text()


def embedded(text: str) -> set[bytes]:
    """All files embedded in a page."""
    return {base64.b64decode(data) for data in re.findall(r"base64,([A-Za-z0-9+/=]+)", text)}


class Markup(HTMLParser):
    """Tags, attributes and addresses of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.names: set[str] = set()
        self.addresses: list[str] = []
        self.policy = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        values = dict(attrs)
        self.names |= set(values)
        self.addresses += [v or "" for k, v in attrs if k in ("src", "href", "poster")]
        if values.get("http-equiv") == "Content-Security-Policy":
            self.policy = values["content"] or ""


def harmless(text: str) -> None:
    markup = Markup(text)
    assert not markup.tags & {"script", "iframe", "object", "embed", "form", "base"}
    assert not [name for name in markup.names if name.startswith("on") or name == "style"]
    assert all(address.startswith(("data:", "#")) for address in markup.addresses)
    assert text.count("</style>") == 1
    assert "default-src 'none'" in markup.policy
    assert "unsafe" not in markup.policy
    assert "script-src" not in markup.policy


def with_evil(value: Any) -> Any:
    """Replace every text and every number of a record by markup."""
    if isinstance(value, dict):
        return {name: with_evil(part) for name, part in value.items()}
    if isinstance(value, list):
        return [with_evil(part) for part in value]
    return value if str(value).endswith((".wav", ".mp4")) else EVIL


def test_markup_in_every_field(tmp_path: Path, recording: Path) -> None:
    write(recording, "result.json", with_evil(RECORD))
    evaluation = write(tmp_path / "evaluation", "measures.json", with_evil(MEASURES))
    named = {"summary": {EVIL: {"iou": 1.0, EVIL: 2.0}}, "scenes": {"model": []}}
    other = write(tmp_path / "other", "measures.json", MEASURES | named)
    shards = write(tmp_path / "shards", "manifest.json", {})
    write(shards, "stats.json", {EVIL: 1, "mean": EVIL})
    values = [{"step": n, "kind": kind, "loss": n, EVIL: n}
            for kind in ("train", "held_out") for n in (1, 2)]  # fmt: skip
    trained = tmp_path / "<b>run"
    trained.mkdir()
    (trained / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in values))
    (trained / "config.yaml").write_text(EVIL)
    write(trained, "retrieval.json", {EVIL: {"recall_at_1": EVIL, EVIL: 0.5}, "clips": EVIL})
    text = page_of(tmp_path, recording, evaluation, other, shards, trained)
    harmless(text)
    assert "it ran" in text  # where it is text
    assert len(tracks_of(only(recording))) == 3  # fields that can be used are


def only(folder: Path) -> Separation:
    (separation,) = sources_of([str(folder)])
    assert isinstance(separation, Separation)
    return separation


Change = Callable[[Path, Path, dict[str, Any]], None]


def _overlay_path(folder: Path, private: Path, record: dict[str, Any]) -> None:
    record["overlay"] = str(private / "film.mp4")


def _overlay_up(folder: Path, private: Path, record: dict[str, Any]) -> None:
    record["overlay"] = "../private/film.mp4"


def _overlay_link(folder: Path, private: Path, record: dict[str, Any]) -> None:
    (folder / "overlay.mp4").unlink()
    (folder / "overlay.mp4").symlink_to(private / "film.mp4")


def _mask_in_linked_folder(folder: Path, private: Path, record: dict[str, Any]) -> None:
    (folder / "sub").symlink_to(private)
    record["people"][0]["mask"] = "sub/film.mp4"


def _voice_path(folder: Path, private: Path, record: dict[str, Any]) -> None:
    record["people"][0]["voice"] = str(private / "voice.wav")


def _voice_link(folder: Path, private: Path, record: dict[str, Any]) -> None:
    (folder / "person-1.wav").unlink()
    (folder / "person-1.wav").symlink_to(private / "voice.wav")


def _residual_up(folder: Path, private: Path, record: dict[str, Any]) -> None:
    record["residual"] = "../private/voice.wav"


def _own_truth_with_a_path(folder: Path, private: Path, record: dict[str, Any]) -> None:
    record["source"] = str(folder / "overlay.mp4")
    _of_the_source(folder)
    people = [{"speaker": "s", "role": "speaking", "voice": "../private/voice.wav"}]
    write(folder, "truth.json", {"people": people})


def _truth_of_another_clip(folder: Path, private: Path, record: dict[str, Any]) -> None:
    record["source"] = str(private / "film.mp4")
    people = [{"speaker": "s", "role": "speaking", "voice": "voice.wav"}]
    write(private, "truth.json", {"people": people})


def _of_the_source(folder: Path) -> None:
    """Make the recording one of its own overlay, so that its ground truth counts."""
    from cavmae.datasets.media import probe
    from cavmae.datasets.media.audio_reader import AudioReader

    audio = AudioReader(probe(str(folder / "overlay.mp4")))
    mixture, _ = audio.read(0.0, 1.0)
    audio.close()
    voice = wave(1)[: len(mixture)]
    soundfile.write(str(folder / "person-1.wav"), voice, 16_000, subtype="FLOAT")
    soundfile.write(str(folder / "residual.wav"), mixture - voice, 16_000, subtype="FLOAT")


@pytest.mark.parametrize(
    "change",
    [_overlay_path, _overlay_up, _overlay_link, _mask_in_linked_folder, _voice_path, _voice_link,
     _residual_up, _own_truth_with_a_path, _truth_of_another_clip],
    ids=lambda change: change.__name__,
)  # fmt: skip
def test_no_file_from_outside(change: Change, recording: Path, private: Path) -> None:
    record = copy.deepcopy(RECORD)
    change(recording, private, record)
    write(recording, "result.json", record)
    separation = only(recording)
    secret = wave(SECRET)
    for track in tracks_of(separation):
        size = min(len(track.wave), len(secret))
        assert abs(np.corrcoef(track.wave[:size], secret[:size])[0, 1]) < 0.2, track.name
    blocks = [
        block
        for block in example(separation)
        if isinstance(block, Gallery) and block.items_kind == "videos"
    ]
    for video in (video for block in blocks for video in block.items):
        assert base64.b64decode(video.url.partition(",")[2]) != (private / "film.mp4").read_bytes()
    assert separation.record.faults.sentences


def test_a_truth_that_belongs_to_the_recording(recording: Path) -> None:
    """The ground truth that the two cases above refuse is used where it matches."""
    _of_the_source(recording)
    people = [{"speaker": "s", "role": "speaking", "voice": "person-1.wav"}]
    write(recording, "truth.json", {"people": people})
    record = RECORD | {"source": str(recording / "overlay.mp4")}
    write(recording, "result.json", record)
    names = [track.name for track in tracks_of(only(recording))]
    assert names == ["mixture", "person 1", "person 1, truth", "residual"]


def test_links_of_a_folders_own_files(tmp_path: Path, private: Path, recording: Path) -> None:
    shards = write(tmp_path / "shards", "manifest.json", {})
    (shards / "contact_sheet.png").symlink_to(private / "curve.png")
    trained = tmp_path / "run"
    trained.mkdir()
    (trained / "metrics.jsonl").write_text('{"step": 1, "kind": "train", "loss": 1}\n')
    (trained / "config.yaml").symlink_to(private / "config.yaml")
    (trained / "curve.png").symlink_to(private / "curve.png")
    shutil.copy(private / "notes.txt", trained / "notes.png")
    os.mkfifo(trained / "pipe.png")
    evaluation = write(tmp_path / "evaluation", "measures.json", MEASURES)
    (evaluation / "measures.png").symlink_to(private / "curve.png")
    several = tmp_path / "several"
    several.mkdir()
    shutil.copytree(recording, several / "a")
    (several / "b").symlink_to(recording)
    text = page_of(tmp_path, shards, trained, evaluation, several)
    inside = embedded(text)
    for path in private.iterdir():
        assert path.read_bytes() not in inside, path
    assert "private note" not in text
    for name in ("contact_sheet.png", "config.yaml", "curve.png", "measures.png", "several/b"):
        assert f"{name} is a link" in text, name
    assert "pipe.png is no regular file" in text
    assert "notes.png is no PNG image" in text
    with pytest.raises(CavmaeError, match=r"measures\.json is a link"):
        linked = tmp_path / "linked"
        linked.mkdir()
        (linked / "measures.json").symlink_to(private / "measures.json")
        main([str(linked), "--out", str(tmp_path / "other.html")])


def test_a_folder_that_is_named_may_be_a_link(tmp_path: Path, recording: Path) -> None:
    (tmp_path / "link").symlink_to(recording)
    text = page_of(tmp_path, tmp_path / "link")
    assert "Left out" not in text
    assert (recording / "overlay.mp4").read_bytes() in embedded(text)


def test_large_files_are_not_read(recording: Path, tmp_path: Path) -> None:
    with (recording / "overlay.mp4").open("ab") as file:
        file.truncate(300 << 20)
    assert "overlay.mp4&#39; has more than 256 MB" in page_of(tmp_path, recording)
    with (recording / "result.json").open("ab") as file:
        file.truncate(100 << 20)
    with pytest.raises(CavmaeError, match=r"result\.json has more than 64 MB"):
        page_of(tmp_path, recording)


WRONG = (None, True, -1, 10**39, "\ud800/..", [[]], {"a": {"b": 1}})


def changed(value: Any) -> list[Any]:
    """Variants of a record, each with one part replaced, lost, or of another type."""
    records: list[Any] = list(WRONG)
    if isinstance(value, dict):
        for name, part in value.items():
            rest = {k: v for k, v in value.items() if k != name}
            records += [rest, *({**value, name: other} for other in changed(part))]
    elif isinstance(value, list):
        for place, part in enumerate(value):
            records += [[*value[:place], other, *value[place + 1 :]] for other in changed(part)]
    return records


@pytest.mark.parametrize(
    ("name", "record", "marker"),
    [
        ("result.json", RECORD, None),
        ("measures.json", MEASURES, None),
        ("stats.json", {"samples": 3, "fbank_mean": -7.1}, "manifest.json"),
        ("retrieval.json", RETRIEVAL, "metrics.jsonl"),
    ],
)
def test_fields_of_any_type(name: str, record: Any, marker: str | None, tmp_path: Path) -> None:
    folder = write(tmp_path / "folder", marker or name, {})
    for other in changed(record):
        write(folder, name, other)
        with contextlib.suppress(CavmaeError):
            faults = Faults()
            harmless(page(sources_of([str(folder)], faults), "title", faults))


@pytest.mark.parametrize("data", [b"", b"\xff{}", b'{"a": ' * 9000, b"[NaN]", b'{"a": 1e999}'])
@pytest.mark.parametrize("name", ["result.json", "measures.json"])
def test_files_that_are_not_json(name: str, data: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(CavmaeError, match=name):
        page_of(tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (b"[1]", "line 1: left out"),
        (b'{"kind": "train", "loss": 1.0}', "line 1: left out"),
        (b'{"step": 1e300, "kind": "train", "loss": 1.0}', "line 1: left out"),
        (b'{"step": -1, "kind": "train"}\n{"step": "1", "kind": "train"}', "line 1 and 1 more"),
        (b'{"step": 1, "kind": ["train"]}', "line 1: left out"),
        (b'{"step": 1, "kind": "train", "loss": NaN}', "NaN is not a finite number"),
        (b'{"step": 1, "kind": "train", "lo\xff": 1}', "can't decode byte"),
        (b'{"step": 1, "kind": "train", "loss": 1e300}', None),
        (b'{"step": 1, "kind": "train", "loss": true, "lr": [1], "grad_norm": -1}', None),
        (b'{"step": 1, "kind": "held_out", "": 3, "\\ud800": 4, "$\\\\frac$": 5}', None),
    ],
)
def test_lines_of_any_kind(
    line: bytes, fault: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = b'{"step": 3, "kind": "train", "loss": 1.0}\n'
    (tmp_path / "metrics.jsonl").write_bytes(line + b"\n" + good + b'{"step": 4, "ki')
    out = tmp_path / "page.html"
    code = run(dispatch, ["report", str(tmp_path), "--out", str(out)])
    messages = capsys.readouterr().err
    assert fault is None or fault in messages
    assert len(messages.splitlines()) == (1 if fault is None or code else 2)
    if code == 0:
        assert "loss from 1 to 1" in out.read_text() or "from 1 to 1" in out.read_text()
    else:
        assert fault is not None
        assert str(tmp_path / "metrics.jsonl") in messages


ODD = ("a\\1b", "a$\\frac$b", "_hidden", "50 %s", "a\nline\x1b[2J", "n" * 200, "\u202efdp", "שלום",
       os.fsdecode(b"caf\xe9"), "#010203", "x\" style=\"y")  # fmt: skip


def test_names_stay_in_the_legend(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ODD:
        (tmp_path / name).mkdir()
        values = [{"step": n, "kind": kind, "loss": n, caption(name, 30): n}
                for kind in ("train", "held_out") for n in (1, 2)]  # fmt: skip
        written = "".join(json.dumps(line) + "\n" for line in values)
        (tmp_path / name / "metrics.jsonl").write_text(written)
    out = tmp_path / os.fsdecode(b"page\xff.html")
    folders = [str(tmp_path / name) for name in ODD]
    assert run(dispatch, ["report", *folders, "--out", str(out)]) == 0
    assert capsys.readouterr().err.splitlines()[0].startswith(f"Wrote {tmp_path}/page\\xff.html")
    text = out.read_text()
    harmless(text)
    labels = [html.unescape(label) for label in re.findall(r"<text [^>]*>([^<]*)</text>", text)]
    for name in ODD:
        assert labels.count(caption(name, 40)) >= 2, name
        assert caption(name, 30) in labels, name  # as the title of a chart


def test_a_chart_with_a_title_and_unit_of_any_kind() -> None:
    for text in ("", "\x00\ufffe{", "$\\frac$ 日本語"):
        drawn = lines(text, text, {text: Line([1, 2], [-1.0, -2.0]), "b": Line([], [])}, True)
        assert drawn.startswith("<svg ")


def test_faults_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    faults = Faults()
    faults.add("a is left out.")
    faults.add("a is left out.")
    assert faults.sentences == caplog.messages == ["a is left out."]
