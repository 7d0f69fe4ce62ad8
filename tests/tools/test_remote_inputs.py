"""`cavmae shard` of addresses: a failed download skips its own input, with the reason."""

import dataclasses
import importlib.util
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cavmae.common.errors import UsageError
from cavmae.datasets.format.manifest import Manifest
from cavmae.datasets.sharding.settings import ShardRunSettings
from cavmae.datasets.sharding.shard_writer import Assembler
from tests.conftest import make_shards
from tests.serving import refusing, serving
from tests.tools.helpers import RUN_SETTINGS, TINY, Maker, contents, infos, skipped

without_gcsfs = pytest.mark.skipif(
    importlib.util.find_spec("gcsfs") is not None, reason="a package has to be missing"
)
IMPATIENT = ShardRunSettings(workers=3, timeout=60.0, download_gb=0.003, stall_seconds=2.0)


@pytest.fixture
def server(tmp_path: Path, video: Maker) -> Iterator[str]:
    video("served/a.mp4")
    with serving(tmp_path / "served") as address:
        yield address


def write_list(path: Path, *lines: str) -> str:
    path.write_text("".join(f"{line}\n" for line in lines))
    return str(path)


@without_gcsfs
def test_every_failure_is_a_skip_of_its_own_reason(
    tmp_path: Path, server: str, video: Maker, caplog: pytest.LogCaptureFixture
) -> None:
    video("near.mp4")
    bad = [
        "htps://example.org/typed.mp4", f"simplecache::{server}/file/chain.mp4",
        "reference://x::file:///tmp/code.json", "pipe://command.mp4",
    ]  # fmt: skip
    names = write_list(
        tmp_path / "list.txt", "near.mp4", f"{server}/file/a.mp4", *bad, "gs://bucket/package.mp4",
        f"{server}/file/gone.mp4", f"{server}/403/denied.mp4", f"{refusing()}/refused.mp4",
        "http://no-such-host.invalid/unknown.mp4", f"{server}/endless/endless.mp4",
        f"{server}/500/error.mp4", f"file://{tmp_path}/near-gone.mp4",
    )  # fmt: skip
    (tmp_path / "served" / "half.mp4").write_bytes((tmp_path / "near.mp4").read_bytes())
    with (tmp_path / "list.txt").open("a") as file:
        file.write(f"{server}/stall/half.mp4\n")
    out = tmp_path / "out"
    caplog.set_level(logging.INFO, "cavmae")
    expected = {
        "typed.mp4": "bad_address", "chain.mp4": "bad_address", "code.json": "bad_address",
        "command.mp4": "bad_address", "package.mp4": "no_package", "gone.mp4": "missing",
        "denied.mp4": "unreadable", "refused.mp4": "unreachable", "unknown.mp4": "unreachable",
        "endless.mp4": "too_large", "error.mp4": "unreachable", "half.mp4": "stalled",
        "near-gone.mp4": "missing",
    }  # fmt: skip
    before = None
    for turn in range(2):
        caplog.clear()
        assert make_shards(names, out, IMPATIENT, **TINY) == 0
        assert skipped(out) == expected
        assert {Path(info.source).name for info in infos(out)} == {"near.mp4", "a.mp4"}
        messages = [record.getMessage() for record in caplog.records]
        refused = [m for m in messages if m.startswith("Skipped: ")]
        assert len(refused) == len(bad) + 1
        for name in (*bad, "gs://bucket/package.mp4"):
            assert any(name in m for m in refused)
        if turn == 0:
            # Named before any work.
            assert messages.index(refused[-1]) < min(
                i for i, m in enumerate(messages) if "clips/s" in m
            )
        else:
            assert any("15 of 15 inputs were done before, 0 are new" in m for m in messages)
            assert contents(out) == before
        before = contents(out)
    lines = [json.loads(line) for line in (out / "skipped.jsonl").read_text().splitlines()]
    # What no retry can mend is not tried again.
    assert {line["reason"] for line in lines if "retry" not in line} == {"bad_address"}


@without_gcsfs
def test_nothing_but_bad_addresses_gives_1_each_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = write_list(tmp_path / "list.txt", "htps://a/b.mp4", "gs://c/d.mp4")
    for _ in range(2):
        caplog.clear()
        assert make_shards(names, tmp_path / "out", **TINY) == 1
        assert "htps://a/b.mp4" in caplog.text
        assert "pip install gcsfs" in caplog.text
    assert Manifest.load(tmp_path / "out").samples == 0


def test_a_bad_address_on_the_command_line_is_bad_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown scheme 'htps'"):
        make_shards("htps://example.org/a.mp4", tmp_path / "out", **TINY)
    for name in ("download_gb", "stall_seconds"):
        with pytest.raises(UsageError, match="--download-gb and --stall-seconds"):
            make_shards(
                "x", tmp_path / "out", dataclasses.replace(RUN_SETTINGS, **{name: 0.0}), **TINY
            )


def test_what_a_lost_worker_had_fetched_is_removed_at_once(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker is killed while it waits; another run was killed as a whole before."""
    out = tmp_path / "out"
    left = out / ".work" / "0123-0.input-dead"
    left.mkdir(parents=True)
    (left / "video.mp4").write_bytes(bytes(1000))
    seen: list[tuple[bool, bool]] = []
    finish_item = Assembler.finish_item

    def watch(self: Assembler, number: int, messages: list[object], stretches: int) -> None:
        lost = any(getattr(m, "reason", "") == "timeout" for m in messages)
        seen.append((lost, bool(list((out / ".work").glob("*input-*")))))
        finish_item(self, number, messages, stretches)  # type: ignore[arg-type]

    monkeypatch.setattr(Assembler, "finish_item", watch)
    run_settings = ShardRunSettings(workers=1, timeout=3.0)
    names = write_list(tmp_path / "list.txt", f"{server}/stall/a.mp4", f"{server}/file/a.mp4")
    assert make_shards(names, out, run_settings, **TINY) == 0
    assert sorted(seen) == [(False, False), (True, False)]


def test_a_long_download_is_not_given_up_as_long_as_it_goes_on(
    tmp_path: Path, server: str, video: Maker
) -> None:
    path = video("served/slow.mp4")
    with path.open("ab") as file:
        file.truncate(6_000_000)
    run_settings = ShardRunSettings(workers=1, timeout=2.0)
    assert make_shards(f"{server}/slow/slow.mp4", tmp_path / "out", run_settings, **TINY) == 0
    assert skipped(tmp_path / "out") == {}


def test_sound_of_a_data_file_may_be_far(tmp_path: Path, server: str) -> None:
    entry = {"video_id": "v", "wav": f"{server}/file/gone.wav", "video_path": "frames"}
    (tmp_path / "data.json").write_text(json.dumps({"data": [entry]}))
    assert make_shards(str(tmp_path / "data.json"), tmp_path / "out", shorter_side=64) == 1
    assert skipped(tmp_path / "out") == {"gone.wav": "missing"}


def test_pipes_and_devices_are_not_waited_for(tmp_path: Path, video: Maker) -> None:
    video("in/good.mp4")
    os.mkfifo(tmp_path / "in" / "pipe.mp4")
    (tmp_path / "in" / "zero.mp4").symlink_to("/dev/zero")
    names = [str(tmp_path / "in"), write_list(tmp_path / "list.txt", "file:///dev/random")]
    assert make_shards(names, tmp_path / "out", **TINY) == 0
    assert skipped(tmp_path / "out") == dict.fromkeys(
        ("pipe.mp4", "zero.mp4", "random"), "not_a_file"
    )
