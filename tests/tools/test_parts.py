"""Parts of a data set: Slurm arrays, what is done of them, and the array of what is left."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cavmae.common.cli import run
from cavmae.common.errors import CavmaeError, UsageError
from cavmae.common.locks import locked
from cavmae.datasets.format import manifest
from cavmae.datasets.format.manifest import Manifest
from cavmae.datasets.sharding import job, job_state
from cavmae.datasets.sharding.input_plan import Plan
from cavmae.datasets.sharding.inputs import Input
from cavmae.datasets.sharding.job_state import InputLayout, merge_parts
from cavmae.datasets.sharding.part_status import part_states, status_text
from cavmae.datasets.sharding.parts import (
    TaskArray,
    parse_part,
    read_array,
    share_of,
)
from cavmae.tools.shard import main
from tests.conftest import make_shards
from tests.tools.helpers import RUN_SETTINGS, TINY, WORDS, contents, end_part, load, skipped

COMMAND = [sys.executable, "-m", "cavmae.tools.shard"]


def array_of(task: int, tasks: str) -> dict[str, str]:
    """Variables of a task of ``sbatch --array``, as Slurm sets them."""
    numbers = tasks_of(tasks)
    step = int(match[1]) if (match := re.search(r":(\d+)$", tasks)) else 1
    values = {"ID": task, "MIN": min(numbers), "MAX": max(numbers), "STEP": step}
    values["COUNT"] = len(numbers)
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in values.items()}


def tasks_of(expression: str) -> list[int]:
    """Tasks of an expression of ``sbatch --array``, by the manual of Slurm."""
    tasks: list[int] = []
    for part in expression.split(","):
        span, _, step = part.partition(":")
        first, _, last = span.partition("-")
        tasks += range(int(first), int(last or first) + 1, int(step or 1))
    return tasks


def start(task: int, tasks: str, *words: str) -> subprocess.Popen[bytes]:
    """A task of an array job."""
    return subprocess.Popen(
        [*COMMAND, *words, "--part", "auto", "--workers", "1", *WORDS],
        env={**os.environ, **array_of(task, tasks)}, stderr=subprocess.PIPE,
    )  # fmt: skip


@given(
    st.integers(0, 5),
    st.integers(1, 4),
    st.integers(1, 12),
    st.sets(st.integers(1, 12), min_size=1),
)
def test_expressions_name_the_tasks_of_parts(
    first: int, step: int, count: int, chosen: set[int]
) -> None:
    array = TaskArray(first, step, count)
    assert tasks_of(array.expression) == [first + n * step for n in range(count)]
    parts = sorted(part for part in chosen if part <= count)
    if parts:
        assert [array.part(task) for task in tasks_of(array.subset(parts))] == parts
    outside = [task for task in range(80) if array.part(task) is None]
    assert not {*outside} & {*tasks_of(array.expression)}


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/2/3", "-1/2", "Auto"])
def test_parts_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match="--part"):
        parse_part(text, tmp_path, {})


def test_parts_of_an_array_and_of_a_later_one(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert parse_part("2/8", out, {}) == (2, 8) and not out.exists()
    with pytest.raises(UsageError, match=r"SLURM_ARRAY_TASK_ID, .* submit it with sbatch --array"):
        parse_part("auto", out, {"SLURM_PROCID": "0"})
    with pytest.raises(UsageError, match="is 3 tasks from 1 to 9, with gaps: submit all parts"):
        parse_part("auto", out, array_of(3, "1,3,9"))
    assert not out.exists()
    for task, part in ((10, 1), (20, 2), (30, 3)):
        assert parse_part("auto", out, array_of(task, "10-30:10")) == (part, 3)
    assert parse_part("auto", out, array_of(30, "30")) == (3, 3)  # what was left
    assert parse_part("auto", out, array_of(10, "10,30")) == (1, 3)
    for task in (0, 15, 40):
        with pytest.raises(UsageError, match=rf"array 10-30:10, which has no task {task}: submit"):
            parse_part("auto", out, array_of(task, str(task)))
    (out / "array.json").write_text('{"first": 1}')
    with pytest.raises(CavmaeError, match=r"array.json is damaged .*: remove it"):
        parse_part("auto", out, array_of(1, "1-2"))


def test_shares_are_those_of_the_first_task(tmp_path: Path) -> None:
    """Each input has one part, in any order of the list, and with inputs that are added."""
    out, folder = tmp_path / "out", tmp_path / "in"
    folder.mkdir()
    for n in range(12):
        (folder / f"{n}.mp4").write_bytes(b"x" * (3300 if n == 5 else 100 * n))
    items = [Input(str(folder / f"{n}.mp4")) for n in range(12)]
    first = share_of(items, (1, 3), out)
    # The long file is as much as half of the rest.
    sizes = {1: 0, 2: 0, 3: 0}
    for item, part in zip(items, _parts_of(items, out), strict=True):
        sizes[part] += os.stat(item.source).st_size
    assert max(sizes.values()) - min(sizes.values()) <= 500
    added = [Input(str(folder / f"late{n}.mp4")) for n in range(20)]
    (folder / "0.mp4").write_bytes(b"x" * 99_999)  # sizes of later do not count
    parts = [share_of([*added, *items[::-1]], (n, 3), out) for n in (1, 2, 3)]
    assert sorted(i.source for i in first) == sorted(i.source for i in parts[0] if i in items)
    together = [item for part in parts for item in part]
    assert sorted(map(repr, together)) == sorted(map(repr, [*added, *items]))
    with pytest.raises(CavmaeError, match="was made in 3 parts; choose another"):
        share_of(items, (1, 4), out)
    (out / "shares.json").write_text('{"parts": 3, "shares": {"a": "b"}}')
    with pytest.raises(CavmaeError, match=r"shares.json is damaged"):
        share_of(items, (1, 3), out)


def test_a_folder_from_before_there_were_records_keeps_its_shares(tmp_path: Path) -> None:
    (tmp_path / "inputs-part-1-of-2.jsonl").touch()
    items = [Input(f"{n}.mp4") for n in range(20)]
    assert _parts_of(items, tmp_path, 2) == [int(i.identity, 16) % 2 + 1 for i in items]
    assert json.loads((tmp_path / "shares.json").read_text()) == {"parts": 2, "shares": {}}


def _parts_of(items: list[Input], out: Path, count: int = 3) -> list[int]:
    shares = [share_of(items, (n, count), out) for n in range(1, count + 1)]
    return [next(n for n, own in enumerate(shares, 1) if item in own) for item in items]


def test_a_file_system_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    for task in (1, 2):
        assert parse_part("auto", tmp_path, array_of(task, "1-2")) == (task, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["array.json"]


def test_an_out_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "a.mp4").touch()
    for name, value in array_of(1, "1-2").items():
        monkeypatch.setenv(name, value)
    words = [str(tmp_path / "a.mp4"), "--out", str(tmp_path / "file" / "out"), "--part"]
    for part in ("auto", "1/2"):
        assert run(main, [*words, part]) == 1
        assert "Cannot write to" in capsys.readouterr().err


def test_tasks_that_start_together_agree(tmp_path: Path) -> None:
    """Of two arrays that are submitted by mistake, one is the folder's."""
    program = (
        "import json, os, sys\n"
        "from pathlib import Path\n"
        "from cavmae.datasets.sharding.parts import parse_part\n"
        "sys.stdin.readline()\n"
        "print(parse_part('auto', Path(sys.argv[1]), os.environ)[1])"
    )
    out = tmp_path / "out"
    arrays = ["1-4", "1-5"] * 2
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(out)], stdin=subprocess.PIPE, text=True,
            stdout=subprocess.PIPE, env={**os.environ, **array_of(1, tasks)},
        )
        for tasks in arrays
    ]  # fmt: skip
    for process in started:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    counts = {process.communicate(timeout=60)[0].strip() for process in started}
    array = read_array(out)
    assert array is not None and counts == {str(array.count)}
    assert [path.name for path in out.iterdir()] == ["array.json"]


@pytest.mark.long
def test_an_array_with_a_killed_task(
    videos: Path, reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three tasks, of which the second is killed and the third never starts."""
    out = tmp_path / "out"
    words = [str(videos), "--out", str(out)]
    first, second = (start(task, "0-2", *words) for task in (0, 1))
    deadline = time.monotonic() + 60
    while not list(out.glob(".work-part-2-of-3/*.json")):
        assert second.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    running = part_states(out)[1]
    second.kill()
    second.wait()
    assert running.state == "running" and running.holder is not None
    assert running.holder.pid == second.pid and running.inputs > running.sealed
    assert first.wait(60) == 0
    states = part_states(out)
    assert [state.state for state in states] == ["done", "stopped", "missing"]
    assert states[0].samples > 0 and states[0].sealed == states[0].inputs > 0
    assert main(["--status", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "| 2 | stopped |" in printed and "1 done, 1 stopped, 1 missing." in printed
    (again,) = re.findall(r"--array=(\S+) for what is left", printed)
    assert tasks_of(again) == [1, 2]
    left = [start(task, again, *words) for task in tasks_of(again)]
    assert [process.wait(60) for process in left] == [0, 0]
    assert load(out) == load(reference)
    assert skipped(out) == {"broken.mp4": "decode_error"}
    assert "3 done." in status_text(out) and "left" not in status_text(out)
    other = tmp_path / "by-hand"
    for part in (1, 2, 3):
        by_hand = dataclasses.replace(RUN_SETTINGS, part=f"{part}/3")
        assert make_shards(str(videos), other, by_hand, **TINY) == 0
    (out / "array.json").unlink()
    assert contents(out) == contents(other)


@pytest.mark.parametrize("retry", [False, True])
def test_a_finished_data_set_of_which_more_is_planned_is_not_done(
    videos: Path, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, retry: bool
) -> None:
    """The run for more inputs, or for those that were skipped, ends before the first of them."""
    out = tmp_path / "out"
    shutil.copytree(reference, out)
    (tmp_path / "late.mp4").touch()
    inputs = [str(videos)] if retry else [str(videos), str(tmp_path / "late.mp4")]
    run_settings = dataclasses.replace(RUN_SETTINGS, retry_skipped=retry)
    assert "| 1 | done | 10 of 10 | 18 |" in status_text(out)

    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(job, "_run_pool", interrupt)
        with pytest.raises(KeyboardInterrupt):
            make_shards(inputs, out, run_settings, **TINY)
    text = status_text(out)
    assert "| 1 | stopped | 10 of 11 | 18 |" in text and "Run the same command again" in text
    with locked(out / ".work", "busy"):
        assert "| 1 | running | 10 of 11 | 18 |" in status_text(out)
    assert make_shards(inputs, out, run_settings, **TINY) == 0
    assert "| 1 | done | 11 of 11 | 18 |" in status_text(out)


def test_parts_are_joined_when_all_have_what_is_planned(tmp_path: Path) -> None:
    end_part(tmp_path, 1, 2)
    assert merge_parts(tmp_path, 2) is None
    end_part(tmp_path, 2, 0)  # its share is none of the inputs
    assert merge_parts(tmp_path, 2) == Manifest.load(tmp_path)
    # More inputs: the run of part 1 is killed, that of part 2 ends.
    Plan(InputLayout(tmp_path, part=(1, 2))).extend([Input("1-2.mp4")])
    end_part(tmp_path, 2, 3)
    before = contents(tmp_path)
    assert merge_parts(tmp_path, 2) is None
    assert contents(tmp_path) == before
    assert [state.state for state in part_states(tmp_path)] == ["stopped", "done"]
    end_part(tmp_path, 1, 3)
    assert merge_parts(tmp_path, 2) == Manifest.load(tmp_path)
    assert Manifest.load(tmp_path).inputs == 6


def test_parts_that_end_together_are_joined_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While part 1 joins, part 2 writes a new manifest and joins as well, before part 1 writes."""
    for part in (1, 2):
        end_part(tmp_path, part, 1)
    assert merge_parts(tmp_path, 2) is not None
    end_part(tmp_path, 1, 2)

    def merge(place: str, manifests: list[Manifest]) -> Manifest:
        monkeypatch.undo()
        end_part(tmp_path, 2, 3)
        assert merge_parts(tmp_path, 2) == Manifest.load(tmp_path)
        return manifest.merge(place, manifests)

    monkeypatch.setattr(job_state, "merge", merge)
    assert merge_parts(tmp_path, 2) == Manifest.load(tmp_path)
    assert [shard.samples for shard in Manifest.load(tmp_path).shards] == [2, 3]
    text = (tmp_path / "skipped.jsonl").read_text()
    assert text == "part 1 with 2 inputs\npart 2 with 3 inputs\n"


def test_status_of_other_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CavmaeError, match="is no folder of `cavmae shard`"):
        status_text(tmp_path)
    with pytest.raises(CavmaeError, match="is no folder of `cavmae shard`"):
        status_text(tmp_path / "nothing")
    out = tmp_path / "out"
    out.mkdir()
    (out / "inputs-part-2-of-3.jsonl").write_text('{"source": "a.mp4"}\n')
    text = status_text(out)
    assert "| 2 | stopped | 0 of 1 | 0 |" in text
    assert "Run the same command with --part 1/3, 2/3, 3/3 for what is left." in text
    with locked(out / ".work-part-1-of-3", "busy"):
        assert f"| 1 | running | 0 of 0 | 0 | process {os.getpid()} of " in status_text(out)
    (out / "inputs-part-1-of-4.jsonl").touch()
    with pytest.raises(CavmaeError, match=r"parts of several counts \(\[3, 4\]\)"):
        status_text(out)
    for words in (["x.mp4", "--status", str(out)], ["x.mp4"], ["--out", str(out)]):
        assert run(main, words) == 2
    assert "--status FOLDER alone" in capsys.readouterr().err
