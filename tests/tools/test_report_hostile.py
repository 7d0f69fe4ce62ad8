"""`cavmae report` on untrusted records: no script, whatever a field holds."""

import contextlib
import html
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from cavmae.common.cli import run
from cavmae.common.errors import CavmaeError
from cavmae.common.quoting import caption
from cavmae.tools.cli import dispatch
from cavmae.tools.reporting.audio_tracks import tracks_of
from cavmae.tools.reporting.charts import Line, lines
from cavmae.tools.reporting.fields import Faults
from cavmae.tools.reporting.page import page
from cavmae.tools.reporting.sources import sources_of
from tests.tools.report_folders import (
    EVENT_MEASURES,
    MEASURES,
    PREDICTION,
    RECORD,
    harmless,
    only,
    page_of,
    write,
)

EVIL = "<img src=x onerror=\"document.title='it ran'\"></style><script>alert(1)</script>"
RETRIEVAL = {"clips": 40, "audio_to_video": {"recall_at_1": 0.25, "median_rank": 3.0}}


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
    events = write(tmp_path / EVIL.replace("/", ""), "events.json", with_evil(PREDICTION))
    half = PREDICTION | {"labels": [PREDICTION["labels"][0] | {"name": EVIL}]}  # type: ignore[index]
    drawn = write(tmp_path / "drawn", "events.json", half)
    figures = write(tmp_path / "figures", "events.json", with_evil(EVENT_MEASURES))
    text = page_of(tmp_path, recording, evaluation, other, shards, trained, events, drawn, figures)
    harmless(text)
    assert "it ran" in text  # where it is text
    assert len(tracks_of(only(recording))) == 3  # fields that can be used are


SHORT_PREDICTION = {
    "model": "m", "seconds": 1.0, "window": 1.0, "hop": 1.0, "conditions": {"mode": "audio_only"},
    "timeline": [{"start": 0.0, "end": 1.0}],
    "labels": [{"name": "dog", "spans": [[0.0, 1.0]], "probs": [0.9]}],
}  # fmt: skip
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
        ("events.json", SHORT_PREDICTION, None),
        ("events.json", EVENT_MEASURES, None),
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
