"""Plans of sharding: the same inputs as by a naive loop, in little memory."""

import dataclasses
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cavmae.common import worker_pool
from cavmae.common.errors import CavmaeError
from cavmae.datasets.sharding import shard_writer
from cavmae.datasets.sharding.input_plan import Plan
from cavmae.datasets.sharding.inputs import FileIdentities, Input
from cavmae.datasets.sharding.job import select_inputs
from cavmae.datasets.sharding.job_state import InputLayout, State
from cavmae.datasets.sharding.messages import Skip
from cavmae.datasets.sharding.settings import ShardRunSettings
from cavmae.tools.benchmarks.planning import make_list, plan_rows
from cavmae.tools.benchmarks.table import on_one_core
from tests.conftest import make_shards
from tests.tools.helpers import TINY
from tests.tools.helpers import load as samples_in

# A million rows have to fit into 1 GB beside the program's 60 MB, with a third to spare.
ROW_BYTES = 620


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Files under several names: links to files and folders, some broken or in a loop."""
    for folder in ("a", "a/b"):
        (tmp_path / folder).mkdir()
        for name in ("x.mp4", "y.mp4"):
            (tmp_path / folder / name).touch()
    for link, target in (
        ("link", "a"), ("deep", "link/b"), ("a/up", ".."), ("x.mp4", "a/b/x.mp4"),
        ("a/z.mp4", "../link/y.mp4"), ("gone.mp4", "nothing.mp4"), ("loop", "loop"),
    ):  # fmt: skip
        (tmp_path / link).symlink_to(target)
    return tmp_path


def names_in(tree: Path) -> list[str]:
    """Names of the tree's files, many of them for the same file."""
    folders = ["", "a", "a/b", "link", "link/b", "deep", "a/up", "a/up/link", "a/../link/..",
               "loop", "none", "./a/.", "a//b"]  # fmt: skip
    files = ["x.mp4", "y.mp4", "z.mp4", "gone.mp4", "ü.mp4"]
    return [f"{tree}/{folder}/{file}" for folder in folders for file in files]


def test_real_paths_are_those_of_the_system(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree / "link")
    real_path = FileIdentities().real_path
    names = [*names_in(tree), *(name.removeprefix(f"{tree}/") for name in names_in(tree))]
    names += ["", ".", "..", "/", "//x", f"{tree}/a/", f"{tree}/link/..", f"{tree}/loop"]
    assert [real_path(name) for name in names] == [os.path.realpath(name) for name in names]


def naive_identity(item: Input) -> tuple[object, ...]:
    source = item.source.removeprefix("file://")
    real = source if "://" in source else os.path.realpath(source)
    return real, item.start, item.end, item.speaker


def naive_merge(rows: list[Input]) -> list[Input]:
    """Each file once, under its first name, with the labels of all rows; in the plan's order."""
    merged: dict[tuple[object, ...], Input] = {}
    for row in rows:
        first = merged.get(naive_identity(row), row)
        labels = [*first.labels, *(x for x in row.labels if x not in first.labels)]
        merged[naive_identity(row)] = dataclasses.replace(first, labels=tuple(labels))
    return sorted(merged.values(), key=lambda item: item.identity)


def write_table(path: Path, rows: list[Input]) -> None:
    lines = ["path,start,end,labels,speaker"]
    for item in rows:
        numbers = ["" if x is None else str(x) for x in (item.start, item.end)]
        lines.append(",".join([item.source, *numbers, ";".join(item.labels), item.speaker or ""]))
    path.write_text("\n".join(lines))


def random_rows(rng: random.Random, sources: list[str]) -> list[Input]:
    return [
        Input(
            rng.choice(sources), *rng.choice([(None, None), (1.0, 2.5), (0.0, None)]),
            labels=tuple(rng.sample(["p", "q", "r"], rng.randint(0, 2))),
            speaker=rng.choice([None, "s"]),
        )
        for _ in range(rng.randint(1, 40))
    ]  # fmt: skip


def test_plans_are_those_of_a_naive_loop(tree: Path) -> None:
    """Random tables with repeated rows and names, planned, and again with more rows."""
    rng = random.Random(0)
    sources = [str(Path(name)) for name in names_in(tree)]
    sources += [f"file://{tree}/a/x.mp4", f"file://{tree}/link/y.mp4", "https://a/x.mp4"]
    refused = other_names = 0
    for round_ in range(20):
        layout, table = InputLayout(tree / f"out{round_}"), tree / "t.csv"
        layout.folder.mkdir()
        rows = random_rows(rng, sources)
        more = random_rows(rng, sources)
        if round_ % 3:  # else labels of planned inputs change
            more = [dataclasses.replace(row, labels=()) for row in more]
        write_table(table, rows)
        planned = naive_merge(rows)
        assert Plan(layout).extend(select_inputs([str(table)], ShardRunSettings())) == len(planned)
        write_table(table, rows + more)
        plan, items = Plan(layout), select_inputs([str(table)], ShardRunSettings())
        assert items == naive_merge(rows + more)
        by_task = {item.task: item for item in planned}
        if any(by_task.get(item.task, item) != item for item in items):
            refused += 1
            with pytest.raises(CavmaeError, match=r"inputs.jsonl with other labels or masks"):
                plan.extend(items)
        else:
            known = set(map(naive_identity, planned))
            fresh = [item for item in items if naive_identity(item) not in known]
            other_names += sum(item.task not in by_task for item in items) - len(fresh)
            assert plan.extend(items) == len(fresh)
            planned += fresh
        assert list(plan.items) == planned == [plan.items[n] for n in range(len(planned))]
        assert plan.numbers([item.task for item in planned]) == [*range(len(planned))]
        assert plan.numbers(["0123456789ab-0", planned[0].retry().task]) == [-1, -1]
        lines = [json.dumps(item.to_json(), sort_keys=True) + "\n" for item in planned]
        assert layout.plan.read_text() == "".join(lines)
        assert Plan(layout).extend(planned) == 0
    assert refused > 3


def test_an_input_that_is_planned_under_another_name_is_not_added(tree: Path) -> None:
    layout = InputLayout(tree)
    names = ["a/x.mp4", "a/y.mp4", "link/x.mp4", "deep/x.mp4", "a/b/x.mp4", "x.mp4"]
    first, second, link, deep, plain, top = (Input(f"{tree}/{name}") for name in names)
    assert Plan(layout).extend([first]) == 1
    assert Plan(layout).extend([second, link, deep]) == 2
    assert Plan(layout).extend([plain, top, link, first]) == 0
    assert list(Plan(layout).items) == [first, second, deep]
    assert Plan(layout).extend([dataclasses.replace(link, start=1.0)]) == 1


def test_retries_are_planned_beside_their_inputs(tmp_path: Path) -> None:
    layout, item = InputLayout(tmp_path), Input("a.mp4", labels=("x",))
    plan = Plan(layout)
    plan.extend([item])
    retries = [item.retry(), item.retry().retry(clip=2.0)]
    assert plan.extend_by_retries(retries) == 2
    assert plan.extend_by_retries(retries) == Plan(layout).extend([item]) == 0
    assert list(Plan(layout).items) == [item, *retries]


def test_two_inputs_with_one_hash_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their samples would have the same keys; among a million this happens once in 500 lists."""
    monkeypatch.setattr(Input, "identity", property(lambda item: f"{len(item.source):012x}"))
    layout, items = InputLayout(tmp_path), [Input("a.mp4"), Input("bc.mp4"), Input("b.mp4")]
    with pytest.raises(CavmaeError, match=r"a\.mp4 and b\.mp4 have the same hash.*rename one"):
        Plan(layout).extend(items)
    assert not layout.plan.exists()
    Plan(layout).extend(items[:2])
    with pytest.raises(CavmaeError, match=r"a\.mp4 and b\.mp4 have the same hash"):
        Plan(layout).extend(items[1:])


@pytest.mark.long
def test_a_plan_takes_little_memory(tmp_path: Path) -> None:
    """Growth of the peak with the rows of a list, at first use and at a rerun."""
    peaks = []
    for rows in (1, 50_001):
        out = tmp_path / f"{rows}"
        out.mkdir()
        table = make_list(out / "list.csv", rows)
        peaks.append(
            [on_one_core(plan_rows, table, rows, out, None, pinned=False)[1] for _ in "ab"]
        )
    for small, large in zip(*peaks, strict=True):
        assert (large - small) * 1e6 < ROW_BYTES * 50_000
    assert len(Plan(InputLayout(out)).items) == rows


def test_inputs_without_samples_are_done_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list of files that are all missing would else be held and begun again as a whole."""
    monkeypatch.setattr(shard_writer, "UNSAVED", 2)
    layout = InputLayout(tmp_path)
    layout.work_folder.mkdir()
    plan, state = Plan(layout), State({})
    plan.extend([Input(f"{n}.mp4") for n in range(5)])
    assembler = shard_writer.Assembler(layout, plan, state, 100, 1e9)
    for number in (0, 1, 2, 4):
        assembler.finish_item(number, [Skip(None, None, "missing", "")])
        assembler.advance()
    saved = State.load(layout, {})
    assert (saved.item, saved.skipped, saved.shards) == (2, 2, [])
    assert assembler.next_item == 3 and assembler.finished() == {4}
    left = {path.stem for path in layout.work_folder.glob("*-0.json")}
    assert left == {plan.items[number].task for number in (2, 4)}
    again = shard_writer.Assembler(layout, plan, saved, 100, 1e9)
    again.load_finished()
    assert again.finished() == {2, 4}


def test_finished_inputs_are_not_extracted_again(
    videos: Path, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a run that ends after some inputs, before any shard is full."""
    out, pool = tmp_path / "out", worker_pool.run
    extracted: list[list[str]] = []

    def record(tasks: Iterator[tuple[int, Any] | None], *arguments: Any) -> Iterator[Any]:
        extracted.append([])
        sources: dict[int, str] = {}

        def named() -> Iterator[tuple[int, Any] | None]:
            for task in tasks:
                if task is not None:
                    sources[task[0]] = task[1].item.source
                yield task

        for event in pool(named(), *arguments):
            if isinstance(event, worker_pool.TaskProgress):
                yield event
                continue
            extracted[-1].append(sources[event.task])
            yield event
            if len(extracted) == 1 and len(extracted[0]) == 4:
                raise KeyboardInterrupt

    monkeypatch.setattr(worker_pool, "run", record)
    with pytest.raises(KeyboardInterrupt):
        make_shards(str(videos), out, **{**TINY, "shard_samples": 1000})
    assert not list(out.glob("*.tar"))
    assert make_shards(str(videos), out, **{**TINY, "shard_samples": 1000}) == 0
    assert len(extracted[0]) == 4 and not {*extracted[0]} & {*extracted[1]}
    assert len({*extracted[0], *extracted[1]}) == 10
    assert samples_in(out) == samples_in(reference)


def test_the_program_runs_without_pytorch() -> None:
    """Only its workers import it, which takes 0.6 GB and seconds."""
    program = (
        "import sys, cavmae.datasets.sharding.job, cavmae.datasets.sharding.parts\n"
        "print({'torch', 'av', 'webdataset'} & {*sys.modules})"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert result.stdout.strip() == b"set()"
