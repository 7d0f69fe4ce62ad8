"""`cavmae shard --out s3://...`: the files of a local run, and nothing else, whatever fails."""

import contextlib
import dataclasses
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cavmae.common import stores
from cavmae.common.cli import run
from cavmae.common.errors import CavmaeError, UsageError
from cavmae.datasets.format.manifest import Manifest
from cavmae.datasets.sharding import job, shard_writer, uploads
from cavmae.datasets.sharding.job_state import InputLayout
from cavmae.datasets.sharding.part_status import part_states
from cavmae.datasets.sharding.settings import ShardRunSettings
from cavmae.datasets.sharding.uploads import Uploads
from cavmae.tools.check import CheckSettings
from cavmae.tools.checking.verify import check
from cavmae.tools.shard import main
from tests.conftest import make_shards
from tests.object_store import ObjectStore, Request
from tests.tools import faulty
from tests.tools.helpers import RUN_SETTINGS, TINY, WORDS, Maker, contents, end_part, run_command
from tests.tools.store_runs import OUT, held, sent, shards_in, to_store

EndPart = Callable[[int, int], None]


def test_the_store_has_the_files_of_a_local_run(
    videos: Path, reference: Path, s3: ObjectStore, tmp_path: Path
) -> None:
    local = tmp_path / "local"
    assert to_store(videos, local) == 0
    assert s3.objects("set") == contents(reference)
    created = sent(s3)
    assert created[0] == "inputs.jsonl" and created[-2:] == ["skipped.jsonl", "manifest.json"]
    assert len(created) == len({*created})
    assert not shards_in(local) and not list(local.glob(".*"))
    # A rerun sends nothing, and readers read what a local folder gives.
    s3.requests.clear()
    assert to_store(videos, local) == 0
    assert sent(s3) == []
    assert Manifest.load(OUT).to_bytes() == Manifest.load(reference).to_bytes()
    settings = CheckSettings(
        out=str(tmp_path / "report"), workers=1, sheet=0, cache_dir=str(tmp_path / "cache")
    )
    assert check(OUT, settings) == 0


def test_inputs_that_are_added(s3: ObjectStore, video: Maker, tmp_path: Path) -> None:
    video("in/a.mp4", seconds=4.0)
    local, beside = tmp_path / "local", tmp_path / "beside"
    for _ in range(2):
        assert to_store(tmp_path / "in", local) == 0
        assert make_shards(str(tmp_path / "in"), beside, **TINY) == 0  # type: ignore[arg-type]
        assert s3.objects("set") == contents(beside)
        s3.requests.clear()
        video("in/b.mp4", seconds=4.0)
    assert to_store(tmp_path / "in", local) == 0
    assert sent(s3) == []


def test_a_shard_that_cannot_be_uploaded_ends_the_run(
    videos: Path, reference: Path, s3: ObjectStore, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(stores, "WAITS", (0.0, 0.01))
    tries: list[str] = []

    def fault(request: Request) -> tuple[int, str] | None:
        if request.method != "PUT" or not request.key.endswith("000002.tar"):
            return None
        tries.append(request.key)
        return 400, "InvalidRequest"

    s3.fault = fault
    words = [str(videos), "--out", OUT, "--local-folder", str(tmp_path / "local"), *WORDS]
    assert run(main, [*words, "--workers", "2"]) == 1
    message = capsys.readouterr().err.splitlines()[-1]
    for text in (
        "clips-000002.tar",
        "the store says InvalidRequest, in 3 attempts",
        "run the same",
    ):
        assert text in message
    assert len(tries) == 3 and "secret" not in message and "AKID" not in message
    stored = s3.objects("set")
    assert "manifest.json" not in stored and "clips-000001.tar" in stored
    kept = {path.name: path.stat().st_mtime_ns for path in shards_in(tmp_path / "local")}
    assert "clips-000002.tar" in kept and not kept.keys() & stored.keys()
    s3.fault = lambda request: None
    s3.requests.clear()
    assert run(main, [*words, "--workers", "2"]) == 0
    assert s3.objects("set") == contents(reference)
    assert not {*sent(s3)} & {*stored}  # sealed and sent once


def test_a_kill_before_an_upload_is_recorded(
    videos: Path, reference: Path, s3: ObjectStore, tmp_path: Path
) -> None:
    """The store has the shard; only the record lacks it, and the shard is here as well."""
    local, name = tmp_path / "local", "clips-000001.tar"
    arrived, released = held(s3, lambda r: r.method == "HEAD" and r.key.endswith(name))
    words = [str(videos), "--out", OUT, "--local-folder", str(local), "--workers", "2", *WORDS]
    process = run_command(*words)
    try:
        assert arrived.wait(120)
    finally:
        process.kill()
        process.communicate()
        released.set()
    assert name in [path.name for path in shards_in(local)]
    before = sent(s3)
    assert before == ["inputs.jsonl", "clips-000000.tar", name]
    s3.fault = lambda request: None
    s3.requests.clear()
    assert to_store(videos, local) == 0
    assert s3.objects("set") == contents(reference)
    assert not {*before} & {*sent(s3)}
    assert not shards_in(local)


@pytest.mark.long
def test_a_signal_and_a_kill_in_a_multipart_upload(
    s3: ObjectStore, video: Maker, tmp_path: Path
) -> None:
    """A shard of three parts: the run that goes on aborts what the killed one left."""
    video("in/a.mp4", seconds=4.0, size=(640, 480), clutter=True)
    local = tmp_path / "local"
    words = [str(tmp_path / "in"), "--out", OUT, "--local-folder", str(local), *WORDS]
    words += ["--shorter-side", "1280", "--shard-samples", "4", "--workers", "1"]
    key = "set/clips-000000.tar"
    for number, left in ((signal.SIGTERM, []), (signal.SIGKILL, [key])):
        arrived, released = held(s3, lambda request: request.part == 2)
        process = run_command(*words)
        try:
            assert arrived.wait(120)
            assert s3.unfinished() == [key]
            process.send_signal(number)
            if number == signal.SIGTERM:
                time.sleep(0.5)
            else:
                process.wait()
        finally:
            released.set()
        _, said = process.communicate(timeout=120)
        assert number == signal.SIGKILL or b"interrupted" in said
        assert s3.unfinished() == left
        assert [*s3.objects("set")] == ["inputs.jsonl", "progress.json"]
    (shard,) = shards_in(local)
    content = shard.read_bytes()
    s3.fault = lambda request: None
    assert run(main, words) == 0
    assert s3.unfinished() == []
    assert s3.objects("set")["clips-000000.tar"] == content
    assert Manifest.load(OUT).samples == 4


def test_uploads_overlap_with_extraction_and_hold_it_up(
    videos: Path, reference: Path, s3: ObjectStore, tmp_path: Path
) -> None:
    """While the store is slow, others are sealed; but no more than may wait."""
    local, codes = tmp_path / "local", []
    arrived, released = held(s3, lambda request: request.key.endswith("clips-000000.tar"))
    thread = threading.Thread(target=lambda: codes.append(to_store(videos, local)))
    thread.start()
    try:
        assert arrived.wait(60)
        deadline = time.monotonic() + 60
        while len(shards_in(local)) < uploads.WAITING + 1:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(2.0)  # in which the rest of the videos could be read
        assert len(shards_in(local)) == uploads.WAITING + 1
    finally:
        released.set()
        thread.join()
    assert codes == [0]
    assert s3.objects("set") == contents(reference)


def test_finished_inputs_that_wait_for_a_slow_one_hold_others_up(
    s3: ObjectStore, video: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["wait", *"bcdefg"]
    paths = [str(video(f"in/{name}.mp4", seconds=1.0)) for name in names]
    (tmp_path / "list.txt").write_text("\n".join(paths))
    local, codes = tmp_path / "local", []
    monkeypatch.setattr(job, "shard_task", faulty.work)
    monkeypatch.setattr(shard_writer, "WAITING_BYTES", 0)

    def shard() -> None:
        codes.append(to_store(tmp_path / "list.txt", local, keep_order=True))

    thread = threading.Thread(target=shard)
    thread.start()
    try:
        deadline = time.monotonic() + 60
        while not list(local.glob(".work/*-0.json")):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(1.0)  # in which the rest of the videos could be read
        assert len(list(local.glob(".work/*-0.json"))) == 1
    finally:
        (tmp_path / "in" / "go").touch()
        thread.join()
    assert codes == [0] and Manifest.load(OUT).samples == len(names)


@pytest.mark.parametrize(
    ("part", "name"),
    [
        (None, "clips-000000.tar"), (None, "train-0001.tar"), (None, "manifest.json"),
        (None, "inputs.jsonl"), (None, "clips-part-1-of-2-000000.tar"), (None, "shares.json"),
        ("1/2", "clips-000000.tar"), ("1/2", "train-0001.tar"), ("1/2", "manifest.json"),
        ("1/2", "inputs.jsonl"), ("1/2", "clips-part-1-of-2-000000.tar"),
        ("1/2", "manifest-part-1-of-3.json"),
    ],
)  # fmt: skip
def test_another_data_set_is_not_overwritten(
    s3: ObjectStore, tmp_path: Path, part: str | None, name: str
) -> None:
    (tmp_path / "a.mp4").touch()
    s3.system.pipe_file(f"clips/set/{name}", b"of somebody else")
    s3.requests.clear()
    with pytest.raises(CavmaeError, match=f"{OUT}/{name} was not uploaded .*another data set"):
        to_store(tmp_path / "a.mp4", tmp_path / "local", part=part)
    assert ({*sent(s3)} <= {"shares.json"} and part) or sent(s3) == []
    assert not list((tmp_path / "local").glob("inputs*"))
    assert not list((tmp_path / "local").glob("uploads*"))


def test_parts_on_machines_of_their_own(
    videos: Path, s3: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Local folders are not shared: array, shares and manifests meet at the store."""
    beside = tmp_path / "beside"
    for part in ("1/2", "2/2"):
        run_settings = dataclasses.replace(RUN_SETTINGS, part=part)
        assert make_shards(str(videos), beside, run_settings, **TINY) == 0  # type: ignore[arg-type]

    def submit(task: int, first: int, count: int) -> int:
        values = {"ID": task, "MIN": first, "MAX": first + count - 1, "STEP": 1, "COUNT": count}
        for name, number in values.items():
            monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(number))
        return to_store(videos, tmp_path / str(task), part="auto")

    assert submit(5, 4, 2) == 0
    assert sent(s3)[-1] == "manifest-part-2-of-2.json"
    assert "manifest.json" not in s3.objects("set")
    assert submit(4, 4, 1) == 0  # the array of what was left
    assert sent(s3)[-2:] == ["skipped.jsonl", "manifest.json"]
    stored = s3.objects("set")
    assert json.loads(stored.pop("array.json")) == {"first": 4, "step": 1, "count": 2}
    assert stored == contents(beside)
    s3.requests.clear()
    assert submit(4, 4, 1) == 0
    with pytest.raises(CavmaeError, match="another data set is there"):
        to_store(videos, tmp_path / "3", part="1/3")
    assert sent(s3) == []
    for place in (tmp_path / "4", tmp_path / "5", OUT):
        assert [state.state for state in part_states(place)] == ["done", "done"]


@pytest.fixture
def parts_at_store(s3: ObjectStore, tmp_path: Path) -> Iterator[tuple[Uploads, EndPart]]:
    """The uploads of part 1 of two, and a machine that has ended a part after so many inputs."""

    def end(part: int, inputs: int) -> None:
        layout = end_part(tmp_path, part, inputs)
        for path in (layout.plan, layout.skipped, layout.manifest):
            if path.exists():
                s3.system.pipe_file(f"clips/set/{path.name}", path.read_bytes())

    local = InputLayout(tmp_path / "local", part=(1, 2))
    local.folder.mkdir()
    with contextlib.closing(Uploads(local, stores.Store.parse(OUT))) as uploads:
        yield uploads, end


def test_parts_are_joined_at_the_store_when_all_have_what_is_planned(
    s3: ObjectStore, parts_at_store: tuple[Uploads, EndPart]
) -> None:
    uploads, end = parts_at_store
    end(1, 2)
    assert uploads.publish_whole(2) is None
    end(2, 0)
    assert uploads.publish_whole(2) == Manifest.load(OUT)
    # More inputs: the run of part 2 has sent its plan, and is killed.
    s3.system.pipe_file("clips/set/inputs-part-2-of-2.jsonl", b'{"source": "2-0.mp4"}\n')
    end(1, 3)
    assert uploads.publish_whole(2) is None and Manifest.load(OUT).inputs == 2
    end(2, 1)
    assert uploads.publish_whole(2) == Manifest.load(OUT)
    assert Manifest.load(OUT).inputs == 4


def test_parts_that_end_together_are_joined_at_the_store_as_they_are(
    s3: ObjectStore, parts_at_store: tuple[Uploads, EndPart]
) -> None:
    """Part 2 ends after part 1 has read its manifest, before part 1 writes the joint one."""
    uploads, end = parts_at_store
    end(1, 1)
    end(2, 1)
    assert uploads.publish_whole(2) is not None
    end(1, 2)
    joined = threading.Event()

    def fault(request: Request) -> None:
        if request.method == "PUT" and request.key == "set/manifest.json" and not joined.is_set():
            joined.set()
            end(2, 3)

    s3.fault = fault
    assert uploads.publish_whole(2) == Manifest.load(OUT)
    assert joined.is_set()
    assert [shard.samples for shard in Manifest.load(OUT).shards] == [2, 3]
    text = s3.objects("set")["skipped.jsonl"].decode()
    assert text == "part 1 with 2 inputs\npart 2 with 3 inputs\n"
    # What another machine replaced by something of the same size is written again.
    size = len(s3.objects("set")["manifest.json"])
    s3.system.pipe_file("clips/set/manifest.json", b" " * size)
    assert uploads.publish_whole(2) == Manifest.load(OUT)


def test_shards_that_the_store_lost(
    videos: Path, reference: Path, s3: ObjectStore, tmp_path: Path
) -> None:
    local = tmp_path / "local"
    assert to_store(videos, local) == 0
    s3.system.rm_file("clips/set/clips-000001.tar")
    with pytest.raises(CavmaeError, match=r"s3://\S+000001.tar is missing or altered: copy it bac"):
        to_store(videos, local)
    # Copied back to the local folder, it is sent again; other files are sent again as they are.
    (local / "clips-000001.tar").write_bytes((reference / "clips-000001.tar").read_bytes())
    s3.system.pipe_file("clips/set/manifest.json", b"damaged")
    assert to_store(videos, local) == 0
    assert s3.objects("set") == contents(reference)


def test_folders_of_the_other_kind_are_refused(
    s3: ObjectStore, video: Maker, tmp_path: Path
) -> None:
    video("in/a.mp4", seconds=1.0)
    plain, local = tmp_path / "plain", tmp_path / "local"
    assert make_shards(str(tmp_path / "in"), plain, **TINY) == 0  # type: ignore[arg-type]
    with pytest.raises(CavmaeError, match=f"{plain} holds a data set that was not created for"):
        to_store(tmp_path / "in", plain)
    assert to_store(tmp_path / "in", local) == 0
    with pytest.raises(CavmaeError, match=f"give --out {OUT} --local-folder {local}"):
        make_shards(str(tmp_path / "in"), local, **TINY)  # type: ignore[arg-type]
    with pytest.raises(CavmaeError, match=f"{local} is the local folder of {OUT}"):
        to_store(tmp_path / "in", local, "s3://clips/other")
    assert sent(s3)[-1] == "manifest.json"


def test_bad_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.mp4").touch()
    name = str(tmp_path / "a.mp4")
    for words, message in (
        ([name, "--out", OUT], "needs --local-folder DIR"),
        ([name, "--out", str(tmp_path), "--local-folder", "x"], "is for a remote --out"),
        ([name, "--out", "https://h/set", "--local-folder", "x"], "cannot be written to"),
    ):
        assert run(main, words) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(UsageError, match="needs --local-folder"):
        make_shards(name, OUT, ShardRunSettings(local_folder=OUT), **TINY)  # type: ignore[arg-type]
    assert not (tmp_path / "s3:").exists() and not Path("s3:").exists()


def test_a_bucket_that_cannot_be_used_is_an_error_before_work(
    s3: ObjectStore, video: Maker, tmp_path: Path
) -> None:
    video("in/a.mp4")
    with pytest.raises(CavmaeError, match=r"Cannot list s3://no-bucket/set .*create the bucket"):
        to_store(tmp_path / "in", tmp_path / "1", "s3://no-bucket/set")
    s3.fault = lambda request: (403, "AccessDenied") if request.method == "PUT" else None
    with pytest.raises(CavmaeError, match=r"progress.json .*AccessDenied.*check the bucket"):
        to_store(tmp_path / "in", tmp_path / "2")
    assert not shards_in(tmp_path / "2") and not list(tmp_path.glob("2/.work/*.part"))
