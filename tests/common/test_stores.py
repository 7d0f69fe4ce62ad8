"""Uploads to a store that fails: nothing half-uploaded stays, and no object is half written."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cavmae.common import remote, stores
from cavmae.common.errors import UsageError
from cavmae.common.stores import NameTaken, Stopped, Store, StoreError
from tests.object_store import ObjectStore, Request
from tests.serving import refusing

URL = "s3://clips/set"


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A file of three parts."""
    path = tmp_path / "large.tar"
    path.write_bytes(os.urandom(2 * stores.PART_BYTES + 5000))
    return path


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("https://host/set", "cannot be written"),
        ("hf://datasets/a/b", "cannot be written"),
        ("htps://host/set", "unknown scheme"),
        ("simplecache::s3://clips/set", "chain of addresses"),
        ("s3://clips/a::file:///etc", "chain of addresses"),
        ("s3://", "no whole address"),
        ("s3://AKID:hidden@clips/set", "has a user, a query or a fragment"),
        ("s3://clips/set?X-Amz-Signature=hidden", "has a user, a query or a fragment"),
    ],
)
def test_addresses_refused(url: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        Store.parse(url)
    assert "hidden" not in str(caught.value)


def test_an_address_without_a_slash_at_the_end() -> None:
    assert Store.parse("S3://clips/set/").url == URL
    assert Store(URL).address("a.tar") == f"{URL}/a.tar"


def test_an_object_is_the_file(s3: ObjectStore, large: Path, tmp_path: Path) -> None:
    store, stop = Store(URL), threading.Event()
    small = tmp_path / "small.json"
    small.write_bytes(b"{}")
    assert store.sizes() == {}
    store.upload(large, large.name, stop)
    store.upload(small, small.name, stop, new=True)
    assert s3.objects("set") == {path.name: path.read_bytes() for path in (large, small)}
    assert {r.part for r in s3.requests if r.part} == {1, 2, 3}
    assert store.sizes() == {path.name: path.stat().st_size for path in (large, small)}
    assert store.holds(small, small.name)
    for path in (large, small):
        with pytest.raises(NameTaken):
            store.upload(path, path.name, stop, new=True)
    small.write_bytes(b"[]")
    assert not store.holds(small, small.name) and not store.holds(small, "nothing")
    assert not s3.unfinished()
    assert sorted(tmp_path.iterdir()) == [large, small]


@pytest.mark.parametrize("stored", [b"{}", b"[]"])
def test_a_new_object_whose_answer_was_lost(
    s3: ObjectStore, tmp_path: Path, stored: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store has it when the first attempt fails; with other content it is another's."""
    monkeypatch.setattr(stores, "WAITS", (0.0,))
    path = tmp_path / "small.json"
    path.write_bytes(b"{}")

    def fault(request: Request) -> tuple[int, str] | None:
        if request.method != "PUT":
            return None
        s3.fault = lambda request: None
        s3.system.pipe_file("clips/set/small.json", stored)
        return 400, "InvalidRequest"

    s3.fault = fault
    expected = contextlib.nullcontext() if stored == b"{}" else pytest.raises(NameTaken)
    with expected:
        Store(URL).upload(path, path.name, threading.Event(), new=True)
    assert s3.objects("set") == {path.name: stored}


@pytest.mark.parametrize("times", [1, 99])
def test_a_part_that_fails(
    s3: ObjectStore, large: Path, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once: it is tried again. Always: the multipart upload is aborted."""
    waits = (0.0, 0.01, 0.02)
    monkeypatch.setattr(stores, "WAITS", waits)
    failed: list[Request] = []
    begun: list[list[str]] = []

    def fault(request: Request) -> tuple[int, str] | None:
        if request.part != 2 or len(failed) >= times:
            return None
        failed.append(request)
        begun.append(s3.unfinished())
        return 400, "InvalidPart"

    s3.fault = fault
    if times == 1:
        Store(URL).upload(large, large.name, threading.Event())
        assert s3.objects("set") == {large.name: large.read_bytes()}
    else:
        with pytest.raises(StoreError) as caught:
            Store(URL).upload(large, large.name, threading.Event())
        text = str(caught.value)
        assert f"{large} to {URL}/{large.name}" in text and "the store says InvalidPart" in text
        assert "in 4 attempts" in text and "run the same command again" in text
        assert "secret" not in text and "AKID" not in text
        assert len(failed) == len(waits) + 1
        assert s3.objects("set") == {}
    assert begun[0] == [f"set/{large.name}"] and s3.unfinished() == []


def test_an_object_that_arrives_short_is_no_success(
    s3: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "WAITS", (0.0,))
    path = tmp_path / "a.tar"
    path.write_bytes(b"12345")
    system, _ = remote.filesystem(URL)
    put_file = system.put_file

    def put_short(source: str, target: str, **options: object) -> None:
        put_file(source, target, **options)
        system.pipe_file(target, b"123")

    monkeypatch.setattr(system, "put_file", put_short)
    with pytest.raises(StoreError, match="3 of 5 bytes are at the store, in 2 attempts"):
        Store(URL).upload(path, path.name, threading.Event())


@pytest.mark.parametrize(
    ("status", "code", "remedy"),
    [(403, "AccessDenied", "check the bucket's policy"), (404, "NoSuchBucket", "create the bucke")],
)
def test_what_no_retry_can_mend_ends_at_once(
    s3: ObjectStore, tmp_path: Path, status: int, code: str, remedy: str
) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(b"12345")
    s3.fault = lambda request: (status, code)
    for call in (lambda: Store(URL).upload(path, "a.tar", threading.Event()), Store(URL).sizes):
        with pytest.raises(StoreError, match=f"the store says {code}.*{remedy}"):
            call()


def test_a_store_that_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    for name, value in (
        ("ENDPOINT_URL", refusing()), ("MAX_ATTEMPTS", "1"),
        ("ACCESS_KEY_ID", "AKIDEXAMPLE"), ("SECRET_ACCESS_KEY", "very-secret-key"),
    ):  # fmt: skip
        monkeypatch.setenv(f"AWS_{name}", value)
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        with pytest.raises(StoreError, match=r"Cannot list s3://clips/set .*Connect call") as info:
            Store(URL).sizes()
        assert "secret" not in str(info.value)
    finally:
        s3fs.S3FileSystem.clear_instance_cache()


def test_an_upload_that_is_stopped_is_aborted(s3: ObjectStore, large: Path) -> None:
    stop = threading.Event()

    def fault(request: Request) -> None:
        if request.part == 2:
            stop.set()

    s3.fault = fault
    with pytest.raises(Stopped):
        Store(URL).upload(large, large.name, stop)
    assert s3.unfinished() == [] and s3.objects("set") == {}


def test_what_a_killed_process_left_is_aborted_by_name(s3: ObjectStore, large: Path) -> None:
    """And no other upload: the other one is of another job."""
    arrived, answered = threading.Event(), threading.Event()

    def fault(request: Request) -> None:
        if request.part == 2:
            arrived.set()
            answered.wait(60)

    s3.fault = fault
    code = (
        "import sys, threading\n"
        "from pathlib import Path\n"
        "from cavmae.common.stores import Store\n"
        "path = Path(sys.argv[1])\n"
        f"Store({URL!r}).upload(path, path.name, threading.Event())"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(large)])
    try:
        assert arrived.wait(60)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        answered.set()
    key = f"set/{large.name}"
    assert s3.unfinished() == [key]
    other = s3.system.call_s3("create_multipart_upload", Bucket="clips", Key=f"{key}.other")
    Store(URL).abort_uploads(f"{large.name}x".__eq__)
    assert s3.unfinished() == [key, f"{key}.other"]
    Store(URL).abort_uploads(large.name.__eq__)
    assert s3.unfinished() == [f"{key}.other"]
    s3.system.abort_mpu("clips", f"{key}.other", other["UploadId"])
    assert s3.objects("set") == {}


def test_an_upload_without_progress_is_given_up(
    s3: ObjectStore, large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "WAITS", ())
    answered = threading.Event()

    def fault(request: Request) -> None:
        if request.part == 2:
            answered.wait(60)

    s3.fault = fault
    begun = time.monotonic()
    limits = stores.Limits(stall_seconds=1.0)
    try:
        with pytest.raises(StoreError, match=r"bytes were sent in 1 s"):
            Store(URL, limits).upload(large, large.name, threading.Event())
        assert time.monotonic() - begun < 20
        assert s3.unfinished() == []
    finally:
        answered.set()
