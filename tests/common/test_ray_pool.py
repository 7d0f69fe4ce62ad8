"""Pool on Ray: what becomes of tasks whose nodes fail, with a Ray that answers by a script.

The real one is in tests/tools/test_shard_ray.py, which takes minutes.
"""

import hashlib
import logging
import pickle
import platform
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cavmae.common import ray_cluster, ray_node, ray_pool
from cavmae.common.errors import CavmaeError
from cavmae.common.ray_node import Order
from cavmae.common.worker_pool import Event, Finished, Lost, Restarted, TaskProgress
from tests.tools import faulty

ray = pytest.importorskip("ray")
N1, N2 = f"{1:056x}", f"{2:056x}"  # ids of nodes
ABLE = [(N1, "machine-1"), None]  # signs of a task that has begun
DIED = [*ABLE, ray.exceptions.NodeDiedError("gone")]
KILLED = Lost(0, "crash", "killed")


class ScriptedRay:
    """Answers the attempts at a task by scripts: items of their streams, errors, or their events.

    Attributes:
        chosen: node that each attempt had to run on; None: any.
        cancelled: streams.
        looks: streams that were waited for, in all calls.
    """

    exceptions = ray.exceptions
    util = ray.util

    def __init__(self, *scripts: list[Any], nodes: int = 2, head: str = ""):
        self._scripts = scripts
        self._head = head
        self._nodes = [
            {"NodeID": f"{i + 1:056x}", "Alive": True, "Resources": {"CPU": 1.0, "memory": 4e9}}
            for i in range(nodes)
        ]
        self.chosen: list[str | None] = []
        self.cancelled: list[Any] = []
        self.looks = 0

    def get_runtime_context(self) -> Any:
        return SimpleNamespace(gcs_address=self._head)

    def nodes(self) -> list[dict[str, Any]]:
        return self._nodes

    def remote(self, **options: Any) -> Any:
        return lambda function: self

    def options(self, scheduling_strategy: Any = None) -> Any:
        self.chosen.append(scheduling_strategy and scheduling_strategy.node_id)
        return SimpleNamespace(remote=self._begin)

    def _begin(self, data: bytes) -> Any:
        order: Order = pickle.loads(data)
        script = self._scripts[min(order.attempt, len(self._scripts) - 1)]
        items = []
        for item in script:
            if isinstance(item, Event):  # the end of the report
                content = pickle.dumps([TaskProgress(order.number, order.argument), item])
                order.report.write_bytes(content)
                item = hashlib.sha256(content).hexdigest()
            items.append(item)
        return Stream(items)

    def wait(self, streams: list[Any], num_returns: int, timeout: float) -> tuple[list[Any], Any]:
        self.looks += len(streams)
        ready = [stream for stream in streams if stream.items]
        if not ready:
            time.sleep(0.01)
        return ready[:num_returns], None

    def get(self, item: Any) -> Any:
        if isinstance(item, BaseException):
            raise item
        return item

    def cancel(self, stream: Any, force: bool) -> None:
        assert force
        self.cancelled.append(stream)


class Stream:
    def __init__(self, items: list[Any]):
        self.items = items

    def __next__(self) -> Any:
        return self.items.pop(0)


@pytest.fixture(autouse=True)
def head(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Address of a head node that answers; nothing pauses."""
    monkeypatch.setattr(ray_pool, "LONGEST_PAUSE", 0.0)
    monkeypatch.setattr(ray_pool, "WAIT", 0.01)
    with socket.create_server(("127.0.0.1", 0), backlog=1000) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def events(
    fake: ScriptedRay, mail: Path, head: str, tasks: int = 1, workers: int = 0, **changes: Any
) -> list[Any]:
    """Events of tasks named t0, t1, ..."""
    fake._head = head
    limits = {"timeout": 100.0, **changes}
    first = Order(0, None, 0, faulty.say, "/", mail, "", "", memory_bytes=1e9, **limits)
    items = iter([(n, f"t{n}") for n in range(tasks)])
    return list(ray_pool._Driver(fake, items, first, workers, lambda: True).events())


def test_a_death_of_a_node_is_not_the_fault_of_a_task(
    tmp_path: Path, head: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "cavmae")
    scripts = [DIED] * (ray_pool.DEATHS - 1)
    got = events(ScriptedRay(*scripts, [*ABLE, Finished(0, "x")]), tmp_path, head)
    assert [type(event) for event in got] == [Restarted] * len(scripts) + [TaskProgress, Finished]
    assert caplog.text.count("end often") == len(scripts) - ray_pool.MANY_DEATHS
    assert not list(tmp_path.iterdir())  # no report is left
    with pytest.raises(CavmaeError, match=r"10 attempts at t0 failed .*NodeDiedError.* kept: "):
        events(ScriptedRay(DIED), tmp_path, head)
    raylet = [*ABLE, ray.exceptions.LocalRayletDiedError()]
    with pytest.raises(ray.exceptions.LocalRayletDiedError):  # run() says what to do
        events(ScriptedRay(raylet), tmp_path, head)


def test_pauses_grow(tmp_path: Path, head: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_pool, "LONGEST_PAUSE", 60.0)
    failed = ray_pool._AttemptFailed("cluster", "gone")
    driver = ray_pool._Driver(
        ScriptedRay(DIED, head=head), iter([]), SimpleNamespace(memory_bytes=1e9), 0, bool
    )  # type: ignore[arg-type]
    own = ray_pool._Running(Order(0, "x", 0, faulty.say, "", tmp_path, "", "", 1.0, 1.0))
    pauses = []
    for _ in range(ray_pool.DEATHS - 1):
        now = time.monotonic()
        list(driver._repeat(own, failed))
        begin, own = driver._again.pop()
        pauses.append(round(begin - now))
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_a_crash_is_tried_once_more_on_another_node(tmp_path: Path, head: str) -> None:
    crash = [*ABLE, KILLED]
    fake = ScriptedRay(crash, [(N2, "machine-2"), None, Finished(0, "x")])
    assert [type(event) for event in events(fake, tmp_path, head)] == [
        Restarted, TaskProgress, Finished,
    ]  # fmt: skip
    assert fake.chosen == [None, N2]
    fake = ScriptedRay(crash, DIED, crash)  # the death between them is no crash
    got = events(fake, tmp_path, head)
    assert [type(event) for event in got] == [Restarted, Restarted, TaskProgress, Lost]
    assert got[-1] == KILLED and fake.chosen == [None, N2, N2]
    assert events(ScriptedRay(crash, nodes=1), tmp_path, head)[-1] == KILLED  # there is no other
    limit = Lost(0, "out_of_memory", "5 GB used")  # of our own guard
    assert events(ScriptedRay([*ABLE, limit]), tmp_path, head)[-1] == limit


@pytest.mark.parametrize("has_begun", [False, True])
def test_a_silent_task_is_cancelled(
    tmp_path: Path, head: str, monkeypatch: pytest.MonkeyPatch, has_begun: bool
) -> None:
    """Also one that hangs before it has begun, at its imports or on a file system that hangs."""
    monkeypatch.setattr(ray_pool, "GRACE", 0.0)
    monkeypatch.setattr(ray_pool, "LOOK", 0.0)
    fake = ScriptedRay(ABLE[: 1 + has_begun])
    if has_begun:
        (*again, lost) = events(fake, tmp_path, head, timeout=0.05)
        assert lost == Lost(0, "timeout", "its node gave no sign of life for 0.05 s, on 2 nodes")
        assert len(again) == 1 and len(fake.cancelled) == 2
    else:
        with pytest.raises(CavmaeError, match=r"10 attempts at t0 .*no sign of life for 0\.05 s"):
            events(fake, tmp_path, head, timeout=0.05)
        assert len(fake.cancelled) == ray_pool.DEATHS
    # A task that waits for a CPU is not silent.
    monkeypatch.setattr(ray_pool, "GRACE", 100.0)
    late = ScriptedRay([*ABLE, Finished(0, "x")])
    late.wait = lambda *a, **k: (time.sleep(0.2), ScriptedRay.wait(late, *a, **k))[1]  # type: ignore[method-assign]
    assert isinstance(events(late, tmp_path, head)[-1], Finished) and not late.cancelled


def test_nodes_that_cannot_import_end_the_run(tmp_path: Path, head: str) -> None:
    """The package itself, or what it needs: the node would draw and fail one task after another."""
    missing = ModuleNotFoundError("No module named 'cavmae'", name="cavmae")
    error = ray.exceptions.RayTaskError("cavmae_task", "text", missing)
    with pytest.raises(CavmaeError, match=r"machine-1 cannot import cavmae \(ModuleNotFoundError"):
        events(ScriptedRay([ABLE[0], error]), tmp_path, head)
    own = CavmaeError("The machine m cannot import webdataset")
    error = ray.exceptions.RayTaskError("cavmae_task", "text", own)
    with pytest.raises(CavmaeError, match="m cannot import webdataset"):
        events(ScriptedRay([ABLE[0], error]), tmp_path, head)


def test_a_head_node_that_is_gone_ends_the_run(
    tmp_path: Path, head: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_cluster, "HEAD_GONE", 0.2)
    monkeypatch.setattr(ray_pool, "LOOK", 0.01)
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = f"127.0.0.1:{server.getsockname()[1]}"
    began = time.monotonic()
    with pytest.raises(CavmaeError, match=rf"head node .*{closed}, has not answered for 0\.2 s"):
        events(ScriptedRay(ABLE), tmp_path, closed)
    assert time.monotonic() - began > 0.2


def test_work_for_each_task_does_not_grow_with_the_tasks_in_flight(
    tmp_path: Path, head: str
) -> None:
    looks = []
    for workers in (10, 100):
        fake = ScriptedRay([*ABLE, None, Finished(0, "x")])
        events(fake, tmp_path, head, tasks=400, workers=workers)
        looks.append(fake.looks / 400)
    assert looks[1] < 1.5 * looks[0]


def test_a_node_gives_its_first_sign_before_it_imports_anything_of_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else nobody would know which node it is that cannot, or hangs over it."""
    kept: list[Any] = []
    fake = SimpleNamespace(remote=lambda **options: kept.append)
    ray_node.remote_task(fake, 1e9)
    data = ray.cloudpickle.dumps(kept[0])
    for name in [name for name in sys.modules if name.partition(".")[0] == "cavmae"]:
        monkeypatch.setitem(sys.modules, name, None)
    context = SimpleNamespace(get_node_id=lambda: N1)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    stream = pickle.loads(data)(b"an order")
    assert next(stream) == (N1, platform.node())
    with pytest.raises(ImportError, match="cavmae"):
        next(stream)
