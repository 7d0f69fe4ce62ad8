"""State of an interrupted `cavmae shard`: damaged records end in a clear error."""

import contextlib
import dataclasses
import json
import os
import random
import shutil
import zlib
from pathlib import Path
from typing import Any

import pytest

from cavmae.common.errors import CavmaeError
from cavmae.common.locks import holder_of
from cavmae.datasets.format.manifest import ShardEntry
from cavmae.datasets.sharding.clip_extraction import Skip, Written
from cavmae.datasets.sharding.input_plan import Plan
from cavmae.datasets.sharding.inputs import Input
from cavmae.datasets.sharding.job_state import (
    InputLayout,
    State,
    drop_retried,
    locked,
    pending_retries,
    remove_work,
    skip_record,
)
from cavmae.datasets.sharding.shard_writer import Assembler

SETTINGS = {"profile": "speakers"}
ITEMS = [Input("a.mp4", labels=("x",)), Input("b.mp4"), Input("c.mp4", start=1.0)]


@pytest.fixture
def layout(tmp_path: Path) -> InputLayout:
    """A data set under construction: one shard sealed, one part done, one input skipped."""
    layout = InputLayout(tmp_path)
    layout.work_folder.mkdir()
    plan = Plan(layout)
    plan.extend(ITEMS)
    state = State(
        SETTINGS, 1, 0, [ShardEntry("clips-000000.tar", 1, 2048, "0" * 64, ((0,),))], ["x"]
    )
    skip = skip_record(ITEMS[0], Skip(3, 1.5, "decode_error", "detail"), None)
    layout.skipped.write_text(json.dumps(skip) + "\n")
    state.skipped, state.skipped_bytes = 1, layout.skipped.stat().st_size
    state.save(layout)
    layout.part_file(ITEMS[1]).write_bytes(bytes(1024))
    Assembler(layout, plan, state, 100, 1e9).finish_item(
        1, [Written(0, 0.0, 1.0, 1024, 5), Skip(None, None, "timeout", "")]
    )
    return layout


def taken_up(layout: InputLayout) -> Assembler:
    """Assembler of a rerun."""
    plan = Plan(layout)
    state = State.load(layout, SETTINGS)
    again = pending_retries(layout)
    assembler = Assembler(layout, plan, state, 100, 1e9)
    assembler.load_finished()
    if again:
        drop_retried(layout, state)
    assembler.advance()
    return assembler


def test_an_intact_state_is_taken_up(layout: InputLayout) -> None:
    assert list(Plan(layout).items) == ITEMS
    assert State.load(layout, SETTINGS).shards[0].labels == ((0,),)
    assert [item.source for item in pending_retries(layout)] == ["a.mp4"]
    assert 1 not in taken_up(layout).finished()  # its part is not what its CRC says: made again
    assert not layout.part_record(ITEMS[1]).exists()


def test_a_kill_while_the_work_folder_is_emptied_leaves_a_complete_data_set(
    layout: InputLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever file is removed last; and no other process takes the lock meanwhile."""
    assembler = taken_up(layout)
    for number in (1, 2):
        assembler.finish_item(number, [Skip(None, None, "timeout", "")])
    assembler.advance()
    manifest = assembler.finish()
    (layout.work_folder / "a.input-x" / "frames").mkdir(parents=True)
    kept = layout.folder / "kept"
    shutil.copytree(layout.work_folder, kept)
    unlink, left = os.unlink, 0

    def interrupt(path: Any, **options: Any) -> None:
        nonlocal left
        if not left:
            raise KeyboardInterrupt
        left -= 1
        unlink(path, **options)

    for removed in range(10):
        shutil.rmtree(layout.work_folder, ignore_errors=True)
        shutil.copytree(kept, layout.work_folder)
        with locked(layout), monkeypatch.context() as patch:
            left = removed
            patch.setattr(os, "unlink", interrupt)
            with contextlib.suppress(KeyboardInterrupt):
                remove_work(layout)
            patch.undo()
            assert holder_of(layout.work_folder) is not None
        state = State.load(layout, SETTINGS)
        assert state.item == len(ITEMS) == manifest.inputs
        assert [shard.file for shard in state.shards] == [shard.file for shard in manifest.shards]
        if left:
            break
    assert left and removed >= 2 and not layout.work_folder.exists()


def test_inputs_in_a_shard_that_is_not_full_are_not_read_again(layout: InputLayout) -> None:
    blocks = bytes(1024)
    written = Written(0, 0.0, 1.0, len(blocks), zlib.crc32(blocks))
    Assembler(layout, Plan(layout), State.load(layout, SETTINGS), 100, 1e9).finish_item(
        1, [written]
    )
    assembler = taken_up(layout)
    assert assembler.next_item == 2 and not assembler.finished()
    assert assembler.state.item == 1  # a kill now costs nothing: the part is still there
    assert layout.part_file(ITEMS[1]).exists()


@pytest.mark.parametrize(
    "content",
    [b"{\n", b"[" * 100_000 + b"\n", b"\xff\xfe\n", b"[1]\n", b'{"source": 5}\n', b"{}\n"],
)
@pytest.mark.parametrize("name", ["plan", "state", "sealed", "skipped"])
def test_records_that_are_none(layout: InputLayout, name: str, content: bytes) -> None:
    path: Path = getattr(layout, name)
    content = content.ljust(layout.sealed.stat().st_size) if name == "sealed" else content
    path.write_bytes(content if name != "skipped" else content.replace(b"}", b', "retry": 1}'))
    if name == "skipped" and content == b"{}\n":
        path.write_bytes(b'{"retry": {}}\n')
    with pytest.raises(CavmaeError) as caught:
        taken_up(layout)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [b"{", b"[]", b'{"written": [[0, 0, 1, -5, 1]], "skips": []}', b'{"written": [1], "skips": []}',
     b'{"written": [[0, 0.0, 1.0, 1000000000000000000000000000000, 1]], "skips": []}'],
)  # fmt: skip
def test_a_part_whose_record_is_damaged_is_made_again(layout: InputLayout, content: bytes) -> None:
    path = layout.part_record(ITEMS[1])
    path.write_bytes(content)
    assert 1 not in taken_up(layout).finished()
    assert not path.exists()


def test_hundreds_of_edits(layout: InputLayout) -> None:
    """Values of other kinds, keys that are gone: a sentence, or what they say."""
    rng = random.Random(0)
    values: list[Any] = [None, True, -1, 10**30, 1e300, "", [], {}, [[]], [None], {"a": 1}]
    files = [
        layout.plan, layout.state, layout.sealed, layout.skipped, layout.part_record(ITEMS[1]),
    ]  # fmt: skip
    before = {path: path.read_bytes() for path in [*files, layout.part_file(ITEMS[1])]}
    refused = 0
    for _ in range(300):
        path = rng.choice(files)
        lines = [json.loads(line) for line in before[path].splitlines()]
        places: list[tuple[Any, Any]] = []

        def note(value: Any, places: list[tuple[Any, Any]] = places) -> None:
            items = value.items() if isinstance(value, dict) else enumerate(value)
            for key, inner in list(items):
                places.append((value, key))
                if isinstance(inner, dict | list):
                    note(inner)

        note(lines)
        holder, key = rng.choice(places)
        if rng.random() < 0.2:
            del holder[key]
        else:
            holder[key] = rng.choice(values)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        try:
            taken_up(layout)
        except CavmaeError as error:
            refused += 1
            assert "\n" not in str(error)
        for name, content in before.items():
            name.write_bytes(content)
    assert refused > 100


def test_a_state_of_a_former_version_is_refused(layout: InputLayout) -> None:
    """It held the shards itself: without them the same names would be written again."""
    record = json.loads(layout.state.read_text())
    layout.state.write_text(json.dumps({**record, "shards": [], "sealed": 0}))
    with pytest.raises(CavmaeError, match="of a former version"):
        State.load(layout, SETTINGS)


def test_states_do_not_repeat_the_labels_of_all_samples(tmp_path: Path) -> None:
    """A shard adds its own line; what a kill left behind is cut off."""
    layout = InputLayout(tmp_path)
    layout.work_folder.mkdir()
    state = State(SETTINGS, labels=["x"])
    sizes = []
    for number in range(50):
        entry = ShardEntry(f"clips-{number:06d}.tar", 100, 10**6, "0" * 64, ((0,),) * 100)
        state.shards.append(entry)
        state.save(layout)
        sizes.append((layout.state.stat().st_size, layout.sealed.stat().st_size))
    assert sizes[-1][0] < sizes[0][0] + 20
    assert sizes[-1][1] == 50 * sizes[0][1]
    with layout.sealed.open("ab") as file:
        file.write(b'{"file": "clips-0000')
    again = State.load(layout, SETTINGS)
    assert again.shards == state.shards and again.samples == 5000
    again.shards.append(dataclasses.replace(state.shards[0], file="clips-000050.tar"))
    again.save(layout)
    assert State.load(layout, SETTINGS).shards == again.shards
