"""Records at a store that several processes replace: no write is lost, and none is silent."""

import threading

import pytest

from cavmae.common import stores
from cavmae.common.store_records import RecordChanged, StoreRecord
from cavmae.common.stores import Stopped, Store, StoreError
from tests.object_store import ObjectStore, Request

STORE = Store("s3://clips/set")


def test_counts_of_several_writers_add_up(s3: ObjectStore) -> None:
    def add() -> None:
        record = StoreRecord(STORE, "n")
        left = 5
        while left:
            content = record.read()
            number, _, _ = (content or b"0 nobody").partition(b" ")
            try:
                record.write(b"%d %d" % (int(number) + 1, threading.get_ident()))
                left -= 1
            except RecordChanged:
                continue

    threads = [threading.Thread(target=add) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (StoreRecord(STORE, "n").read() or b"").split()[0] == b"15"


def test_a_record_that_another_process_changed(s3: ObjectStore) -> None:
    first, second = StoreRecord(STORE, "r"), StoreRecord(STORE, "r")
    assert first.read() is second.read() is None
    first.write(b"1")
    with pytest.raises(RecordChanged, match="s3://clips/set/r was changed"):
        second.write(b"2")
    assert second.read() == b"1" and second.age() < 60
    second.write(b"2")
    with pytest.raises(RecordChanged):
        first.write(b"3")
    second.remove()
    second.remove()
    with pytest.raises(RecordChanged):
        first.write(b"3")
    assert first.read() is None
    first.write(b"4")
    assert s3.objects("set") == {"r": b"4"}


@pytest.mark.parametrize("new", [True, False])
def test_a_write_whose_answer_was_lost(
    s3: ObjectStore, monkeypatch: pytest.MonkeyPatch, new: bool
) -> None:
    monkeypatch.setattr(stores, "WAITS", (0.0,))
    record = StoreRecord(STORE, "r")
    if not new:
        record.write(b"0")

    def fault(request: Request) -> tuple[int, str] | None:
        if request.method != "PUT":
            return None
        s3.fault = lambda request: None
        s3.system.pipe_file("clips/set/r", b"1")
        return 400, "RequestTimeout"

    s3.fault = fault
    record.write(b"1")
    record.write(b"2")
    assert s3.objects("set") == {"r": b"2"}


def test_writes_that_fail(s3: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "WAITS", (0.0, 0.0))
    tries: list[Request] = []

    def fault(request: Request) -> tuple[int, str] | None:
        if request.method != "PUT":
            return None
        tries.append(request)
        return 400, "InvalidRequest"

    s3.fault = fault
    with pytest.raises(StoreError, match=r"Cannot write s3://clips/set/r .*in 3 attempts"):
        StoreRecord(STORE, "r").write(b"1")
    assert len(tries) == 3
    stop = threading.Event()
    stop.set()
    with pytest.raises(Stopped):
        StoreRecord(STORE, "r").write(b"1", stop)
    assert len(tries) == 4 and s3.objects("set") == {}
