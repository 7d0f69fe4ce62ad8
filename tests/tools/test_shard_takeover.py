"""Data sets at a store that a machine with another local folder takes up, and those it may not."""

import contextlib
import dataclasses
import functools
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cavmae.common.errors import CavmaeError
from cavmae.common.locks import Holder
from cavmae.datasets.format.manifest import Manifest
from cavmae.datasets.sharding import job, upload_claim
from cavmae.datasets.sharding.job_state import State
from cavmae.datasets.sharding.part_status import part_states, status_text
from cavmae.datasets.sharding.upload_claim import UploadProgress
from tests.conftest import make_shards
from tests.object_store import ObjectStore
from tests.tools.helpers import RUN_SETTINGS, TINY, WORDS, Maker, contents, run_command
from tests.tools.store_runs import OUT, held, sent, to_store


def interrupt(*arguments: object) -> None:
    raise KeyboardInterrupt


@contextlib.contextmanager
def stopped_early() -> Iterator[None]:
    """A run in this context ends in order when it would begin to extract."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(job, "_run_pool", interrupt)
        yield


def local_run(inputs: Path, out: Path, **changes: object) -> dict[str, bytes]:
    """Files of the uninterrupted run in a local folder."""
    run_settings = dataclasses.replace(RUN_SETTINGS, **changes)
    assert make_shards(str(inputs), out, run_settings, **TINY) == 0  # type: ignore[arg-type]
    return contents(out)


def test_a_part_killed_in_an_upload_is_taken_up_elsewhere(
    s3: ObjectStore, video: Maker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """From another local folder. Those of a complete part have nothing left to do."""
    videos = tmp_path / "in"
    for name in "abcd":
        video(f"in/{name}.mp4", seconds=2.0)
    caplog.set_level("INFO", "cavmae")
    array = {"ID": "1", "MIN": "1", "MAX": "2", "STEP": "1", "COUNT": "2"}
    words = [str(videos), "--out", OUT, "--local-folder", str(tmp_path / "1"), "--workers", "1"]
    first, second = (f"clips-part-1-of-2-{n:06d}.tar" for n in (0, 1))
    arrived, released = held(s3, lambda r: r.method == "PUT" and r.key.endswith(second))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in array.items():
            patch.setenv(f"SLURM_ARRAY_TASK_{name}", value)
        process = run_command(*words, "--part", "auto", *WORDS)
    try:
        assert arrived.wait(300)
    finally:
        process.kill()
        process.communicate()
    assert to_store(videos, tmp_path / "2", part="2/2") == 0
    for place in (OUT, str(tmp_path / "2")):
        text = status_text(place)
        assert "1 done, 1 stopped." in text and "with --array=1 for" in text
    # A request that was on its way arrives late; other uploads of the part never end.
    s3.system.pipe_file(f"clips/set/{second}", b"of another processor")
    uploads = {
        name: s3.system.call_s3("create_multipart_upload", Bucket="clips", Key=f"set/{name}")
        for name in ("clips-part-1-of-2-000002.tar", "clips-part-2-of-2-000009.tar")
    }
    released.set()
    s3.fault = lambda request: None
    stored = s3.objects("set")[first]
    s3.requests.clear()
    caplog.clear()
    assert to_store(videos, tmp_path / "3", part="1/2") == 0
    assert s3.unfinished() == ["set/clips-part-2-of-2-000009.tar"]
    s3.system.abort_mpu(
        "clips", "set/clips-part-2-of-2-000009.tar",
        uploads["clips-part-2-of-2-000009.tar"]["UploadId"],
    )  # fmt: skip
    assert first not in sent(s3) and s3.objects("set")[first] == stored
    assert "1 of 2 inputs were done before" in caplog.text
    for part in ("1/2", "2/2"):
        whole = local_run(videos, tmp_path / "beside", part=part)
    at_store = s3.objects("set")
    assert json.loads(at_store.pop("array.json"))["count"] == 2
    assert at_store == whole
    s3.requests.clear()
    for folder in "14":  # the first was killed when all was extracted, the other one is new
        assert to_store(videos, tmp_path / folder, part="1/2") == 0
    assert s3.created() == []
    assert "2 done." in status_text(OUT)


@pytest.mark.parametrize("done", [False, True])
def test_another_data_set_is_refused_and_more_inputs_are_added(
    s3: ObjectStore, video: Maker, tmp_path: Path, done: bool
) -> None:
    video("in/a.mp4", seconds=2.0)
    inputs, beside = tmp_path / "in", tmp_path / "beside"
    first, second = tmp_path / "1", tmp_path / "2"
    for run in (functools.partial(to_store, local=first), functools.partial(local_run, out=beside)):
        with contextlib.nullcontext() if done else stopped_early():
            run(inputs)
    stored = s3.objects("set")
    with pytest.raises(CavmaeError, match=f"{OUT}/.* samples made with clip_seconds 1.0, not 0.7"):
        make_shards(
            str(inputs), OUT, dataclasses.replace(RUN_SETTINGS, local_folder=str(second)),
            **{**TINY, "clip_seconds": 0.7},  # type: ignore[arg-type]
        )  # fmt: skip
    video("other/b.mp4")
    with pytest.raises(CavmaeError, match=r"inputs.jsonl plans \S+a.mp4, .*another data set is th"):
        to_store(tmp_path / "other", second)
    assert s3.objects("set") == stored
    assert [path.name for path in second.iterdir()] == []
    video("in/b.mp4", seconds=1.0)
    assert to_store(inputs, second) == 0
    assert s3.objects("set") == local_run(inputs, beside)
    with pytest.raises(CavmaeError, match=r"plans .*b.mp4"):  # what the first folder knew is older
        to_store(tmp_path / "in" / "a.mp4", first)


def test_retries_that_are_taken_up_elsewhere(s3: ObjectStore, video: Maker, tmp_path: Path) -> None:
    video("in/a.mp4", seconds=1.0)
    (tmp_path / "in" / "broken.mp4").write_text("no video")
    assert to_store(tmp_path / "in", tmp_path / "1") == 0
    with stopped_early():
        to_store(tmp_path / "in", tmp_path / "2", retry_skipped=True)
    assert to_store(tmp_path / "in", tmp_path / "3") == 0  # the plan has the retries
    local_run(tmp_path / "in", tmp_path / "beside")
    whole = local_run(tmp_path / "in", tmp_path / "beside", retry_skipped=True)
    assert s3.objects("set") == whole


def test_two_runs_at_once(
    s3: ObjectStore, video: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second waits and is refused; if the first seems dead, it is the first that ends."""
    monkeypatch.setattr(upload_claim, "BEATS", 30)
    monkeypatch.setattr(upload_claim, "POLLS", 60)
    video("in/a.mp4", seconds=4.0)
    errors: list[CavmaeError] = []

    def first() -> None:
        try:
            to_store(tmp_path / "in", tmp_path / "1")
        except CavmaeError as error:
            errors.append(error)

    late = "clips-000000.tar"
    arrived, released = held(s3, lambda r: r.method == "PUT" and r.key.endswith(late))
    thread = threading.Thread(target=first)
    thread.start()
    try:
        assert arrived.wait(300)
        with pytest.raises(CavmaeError, match=r"Process \d+ of \S+ is writing .*progress.json"):
            to_store(tmp_path / "in", tmp_path / "2")
        assert part_states(OUT)[0].state == "running" and not errors
        with monkeypatch.context() as patch:
            patch.setattr(Holder, "is_alive", False)
            assert to_store(tmp_path / "in", tmp_path / "2") == 0
    finally:
        released.set()
        thread.join()
    assert "has taken over s3://clips/set/progress.json" in str(*errors)
    whole = local_run(tmp_path / "in", tmp_path / "beside")
    assert s3.objects("set") == whole
    assert to_store(tmp_path / "in", tmp_path / "1") == 0
    assert s3.objects("set") == whole


@pytest.mark.parametrize("part", [None, "1/2"])
def test_two_runs_that_begin_at_once(
    s3: ObjectStore, video: Maker, tmp_path: Path, part: str | None
) -> None:
    """The first begins and ends after the second has seen an empty place."""
    video("in/a.mp4")
    first, second = tmp_path / "first", tmp_path / "second"
    arrived, released = held(s3, lambda r: r.method == "PUT" and "progress" in r.key)
    errors: list[CavmaeError] = []

    def late() -> None:
        try:
            to_store(tmp_path / "in", second, part=part)
        except CavmaeError as error:
            errors.append(error)

    thread = threading.Thread(target=late)
    thread.start()
    try:
        assert arrived.wait(300)
        assert to_store(tmp_path / "in", first, part=part) == 0
    finally:
        released.set()
        thread.join()
    stored = s3.objects("set")
    assert "began at s3://clips/set at the same time: wait for it" in str(*errors)
    assert "progress" not in str([*stored])
    s3.requests.clear()
    for folder in (second, first):
        assert to_store(tmp_path / "in", folder, part=part) == 0
    assert s3.objects("set") == stored and sent(s3) == []


def test_a_machine_without_a_sign_of_life(
    s3: ObjectStore, video: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    video("in/a.mp4", seconds=1.0)
    with stopped_early():
        to_store(tmp_path / "in", tmp_path / "1")
    name = "clips/set/progress.json"
    progress = UploadProgress.parse(s3.system.cat_file(name), name)
    away = dataclasses.replace(progress, holder=Holder("elsewhere", 77))
    s3.system.pipe_file(name, away.to_bytes(1))
    (status,) = part_states(OUT)
    assert (status.state, status.inputs, status.holder) == ("running", 1, Holder("elsewhere", 77))
    assert "process 77 of elsewhere" in status_text(OUT)
    monkeypatch.setattr(upload_claim, "LEASE_SECONDS", 0.6)
    assert to_store(tmp_path / "in", tmp_path / "2") == 0
    assert s3.objects("set") == local_run(tmp_path / "in", tmp_path / "beside")
    assert Manifest.load(OUT).samples == 1


def test_a_damaged_record_of_progress(s3: ObjectStore, video: Maker, tmp_path: Path) -> None:
    video("in/a.mp4", seconds=1.0)
    good = UploadProgress("a", 1, State({}), "").to_bytes(1)
    for content in (b"{", b"[]", good.replace(b'"skipped": ""', b'"skipped": "x\\n"')):
        assert content != good
        s3.system.pipe_file("clips/set/progress.json", content)
        with pytest.raises(CavmaeError, match=rf"{OUT}/progress.json is damaged \(.*\): give the"):
            to_store(tmp_path / "in", tmp_path / "local")
    assert s3.objects("set") == {"progress.json": content}
    assert not list((tmp_path / "local").glob("*"))
