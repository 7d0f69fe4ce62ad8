import json
import os
import re
from pathlib import Path

import pytest

from cavmae.common.errors import UsageError
from cavmae.common.json_files import value_as
from cavmae.datasets.format.sample import split_member
from cavmae.datasets.sharding.input_lists import collect
from cavmae.datasets.sharding.inputs import Input, sample_key


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    return path


def test_folders_are_searched_and_files_taken_as_they_are(tmp_path: Path) -> None:
    for name in ("a.mp4", "b/c.MKV", "b/d/e.webm", "b/notes.doc", "b/mask.png"):
        touch(tmp_path / name)
    odd = touch(tmp_path / "b" / "video.bin")
    items, repeated = collect([str(tmp_path), str(odd), str(tmp_path / "a.mp4")])
    names = [os.path.relpath(item.source, tmp_path) for item in items]
    assert names == ["a.mp4", "b/c.MKV", "b/d/e.webm", "b/video.bin"]
    assert [item.source for item in repeated] == [str(tmp_path / "a.mp4")]


def test_lists_are_relative_to_their_folder(tmp_path: Path) -> None:
    path = tmp_path / "x" / "list.txt"
    touch(path).write_text("# comment\na.mp4\n\n  b c.mp4  \n/abs/d.mp4\ns3://bucket/e.mp4\n")
    sources = [item.source for item in collect([str(path)])[0]]
    root = str(tmp_path / "x")
    assert sources == [f"{root}/a.mp4", f"{root}/b c.mp4", "/abs/d.mp4", "s3://bucket/e.mp4"]


def test_tables(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(
        '﻿path, start,end,labels,speaker,masks\n"a,1.mp4",1.5,4,speech; music ,s1,m/a\n'
        '"two\nlines.mp4",,,,,\n',
        encoding="utf-8",
    )
    first, second = collect([str(path)])[0]
    assert first == Input(
        f"{tmp_path}/a,1.mp4", 1.5, 4.0, ("speech", "music"), "s1", f"{tmp_path}/m/a"
    )
    assert second == Input(f"{tmp_path}/two\nlines.mp4")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("file,start\na.mp4,1\n", "no column 'path'"),
        ("", "is empty: its first line must name the columns"),
        ("path,start\na.mp4,one\n", "line 2: start 'one'"),
        ("path,end\na.mp4,-1\n", "line 2: end '-1'"),
        ("path,end\na.mp4,nan\n", "line 2: end 'nan'"),
        ("path,start\n,1\n", "line 2"),
        ("path,start,end\na.mp4,5,4\n", "line 2: end"),
        ("path\na.mp4,1,2\n", "line 2"),
    ],
)
def test_tables_refused(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(UsageError, match=complaint) as caught:
        collect([str(path)])
    assert str(path) in str(caught.value)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="UTF-8"):
        collect([str(path)])


def test_data_files_of_the_reference(tmp_path: Path) -> None:
    entry = {"video_id": "v1", "wav": "w/v1.wav", "video_path": "/frames", "labels": "/m/a,/m/b"}
    path = tmp_path / "data.json"
    path.write_text(json.dumps({"data": [entry]}))
    (item,) = collect([str(path)])[0]
    assert item == Input(f"{tmp_path}/w/v1.wav", labels=("/m/a", "/m/b"), frames="/frames/v1")
    for bad in ({"data": [{"wav": "x"}]}, [], {"data": 3}, {"dat": []}):
        path.write_text(json.dumps(bad))
        with pytest.raises(UsageError, match=r"data\.json"):
            collect([str(path)])


def test_two_rows_about_one_clip_are_one_with_the_labels_of_both(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("path,labels,masks\na.mp4,speech,m\na.mp4,music;speech,\n")
    (item,), repeated = collect([str(path)])
    assert item.labels == ("speech", "music")
    assert item.masks == f"{tmp_path}/m"
    assert len(repeated) == 1
    path.write_text("path,masks\na.mp4,m1\na.mp4,m2\n")
    with pytest.raises(UsageError, match="different masks"):
        collect([str(path)])


def test_a_name_that_is_nothing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no file or folder"):
        collect([str(tmp_path / "missing.mp4")])


def test_keys_are_safe_and_unique() -> None:
    sources = ["a/x.mp4", "b/x.mp4", "a/x.avi", "a/ü ñ\n'\".mp4", "a/\udcff.mp4", "-", "../x.mp4"]
    sources += ["a/" + "long" * 90 + ".mp4", "x y.mp4", "x-y.mp4"]
    keys = [sample_key(Input(s), start) for s in sources for start in (0.0, 5.12, 7200.001)]
    keys += [
        sample_key(Input("a/x.mp4", start=1.0), 1.0),
        sample_key(Input("a/x.mp4", speaker="b"), 0.0),
    ]
    assert len(set(keys)) == len(keys)
    for key in keys:
        assert split_member(key + ".fbank.npy") == (key, "fbank.npy")
        assert len(key + ".fbank.npy") <= 100


def test_inputs_survive_json() -> None:
    item = Input("a\udcff\n.mp4", 1.0, None, ("x",), "s", "m", None, None, (1.0, 2.0), 3)
    assert value_as(Input, json.loads(json.dumps(item.to_json())), "an input") == item
    assert Input("a").to_json() == {"source": "a"}


def test_retries() -> None:
    item = Input("a")
    assert all(item.wants(i, i * 5.0) for i in range(3))
    of_one_clip = item.retry(clip=10.0)
    assert [of_one_clip.wants(i, i * 5.0) for i in range(4)] == [False, False, True, False]
    rest = item.retry(done=(1, 5.0))
    assert [rest.wants(i, i * 5.0) for i in range(4)] == [False, False, True, True]
    both = rest.merge_retry(item.retry(clip=0.0))
    assert [both.wants(i, i * 5.0) for i in range(4)] == [True, False, True, True]
    again = both.retry(done=(2, 10.0))
    assert [again.wants(i, i * 5.0) for i in range(4)] == [False, False, False, True]
    assert len({item.task, of_one_clip.task, again.task}) == 3
    assert sample_key(item, 0.0) == sample_key(again, 0.0)


def test_a_name_may_begin_with_a_number_sign_or_end_with_a_blank(tmp_path: Path) -> None:
    for name in ("#1.mp4", " a.mp4 ", "b\x0cc.mp4", "d\u2028e.mp4", "z.mp4"):
        touch(tmp_path / name)
    path = touch(tmp_path / "list.txt")
    path.write_text("#1.mp4\n#2.mp4\n# z.mp4\n a.mp4 \r\n z.mp4 \nb\x0cc.mp4\nd\u2028e.mp4\n#\n")
    names = [os.path.relpath(item.source, tmp_path) for item in collect([str(path)])[0]]
    assert names == ["#1.mp4", " a.mp4 ", "z.mp4", "b\x0cc.mp4", "d\u2028e.mp4"]


def test_empty_rows_of_a_table_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("\n,,\npath,start,end\n\na.mp4,1,2\n,,\n  , ,\nb.mp4,,\n,,\n")
    items = collect([str(path)])[0]
    assert items == [Input(f"{tmp_path}/a.mp4", 1.0, 2.0), Input(f"{tmp_path}/b.mp4")]


def test_rows_of_another_length_are_named_by_line(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("path,start,end\na.mp4,1,2\nb.mp4\nc.mp4,1,2,\nd.mp4,1\n")
    with pytest.raises(UsageError, match=r"t\.csv, line 3, 4, 5: the number of fields is not 3"):
        collect([str(path)])
    path.write_text("path,start\n" + "a.mp4\n" * 30)
    with pytest.raises(UsageError, match="10, 11 and 20 more lines"):
        collect([str(path)])
    path.write_text("path,labels,labels\na.mp4,b,c\n")
    with pytest.raises(UsageError, match="'labels' more than once"):
        collect([str(path)])


def test_fields_that_are_not_used_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "t.csv").write_text("path,note,\na.mp4,x,\n")
    entry = {"video_id": "v1", "wav": "v1.wav", "video_path": "f", "labels": "", "start": 3}
    (tmp_path / "d.json").write_text(json.dumps({"data": [entry]}))
    collect([str(tmp_path / "t.csv"), str(tmp_path / "d.json")])
    assert "t.csv: columns that are not used: note, a column without a name" in caplog.text
    assert "d.json: fields that are not used: start" in caplog.text


@pytest.mark.parametrize(
    "text",
    [
        '{"data": [{"video_id": "v", "wav": "\\u0000", "video_path": "f"}]}',
        '{"data": [{"video_id": "v", "wav": "\\ud800", "video_path": "f"}]}',
        '{"data": [{"video_id": "v", "wav": ["w"], "video_path": "f"}]}',
        '{"data": [{"video_id": "v", "wav": "w", "video_path": "f", "labels": ["a"]}]}',
        '{"data": ["x"]}',
        '{"data": ' + "[" * 100_000,
        "\xff",
        "",
    ],
)
def test_data_files_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "d.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError, match=r"d\.json"):
        collect([str(path)])


@pytest.mark.parametrize("name", ["l.txt", "t.csv", "d.json"])
def test_lists_are_regular_files(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(UsageError, match=re.escape(name)):
        collect([str(tmp_path / name)])
    (tmp_path / name).unlink()
    (tmp_path / name).write_bytes(b"path\na\0b.mp4\n")
    with pytest.raises(UsageError, match=re.escape(name)):
        collect([str(tmp_path / name)])


def test_files_by_address_are_the_same_as_by_path(tmp_path: Path) -> None:
    path = touch(tmp_path / "a.mp4")
    items, repeated = collect([str(path), f"file://{path}"])
    assert [item.source for item in items] == [str(path)]
    assert [item.source for item in repeated] == [f"file://{path}"]
