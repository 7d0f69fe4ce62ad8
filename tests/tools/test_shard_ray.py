"""`cavmae shard --executor ray` on a real cluster of three nodes, killed in mid-run.

Run by `.ci/run`: to start a cluster and its workers takes a minute.
"""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from cavmae.common import ray_pool
from cavmae.common.errors import CavmaeError, UsageError
from cavmae.common.ray_node import Order, execute
from cavmae.common.worker_pool import Event, Finished, Lost, Restarted, TaskProgress
from cavmae.tools.benchmarks.media import make_video
from cavmae.tools.shard import main
from tests.conftest import SMALL
from tests.tools import faulty
from tests.tools.helpers import WORDS, contents, skipped

SKIPPED = "takes minutes: set CAVMAE_CLUSTER=1, as .ci/run does"
NODE = {"num_cpus": 1, "memory": 4e9, "object_store_memory": 80_000_000}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    if not os.environ.get("CAVMAE_CLUSTER"):
        pytest.skip(SKIPPED)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    # No task runs on the head node: it is not killed.
    head = {"num_cpus": 0, "object_store_memory": 80_000_000, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(3):
        cluster.add_node(**NODE)
    yield cluster
    cluster.shutdown()


@pytest.fixture(scope="module")
def many(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """180 short videos, and one that is none."""
    folder = tmp_path_factory.mktemp("many")
    for number in range(20):
        for video in videos.glob("v*.mp4"):
            shutil.copy(video, folder / f"{video.stem}-{number}.mp4")
    shutil.copy(videos / "broken.mp4", folder)
    return folder


@pytest.fixture(scope="module")
def expected(many: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same from one worker of this machine."""
    out = tmp_path_factory.mktemp("expected") / "out"
    assert main([str(many), "--out", str(out), "--workers", "1", *WORDS]) == 0
    return out


def ray_words(cluster: Any) -> list[str]:
    return ["--executor", "ray", "--ray-address", cluster.address, "--memory-gb", "2", *WORDS]


def task_processes(cluster: Any) -> list[psutil.Process]:
    """Ray's processes that run a task now."""
    raylets = [node.all_processes["raylet"][0].process.pid for node in cluster.worker_nodes]
    tasks = []
    for child in (c for pid in raylets for c in psutil.Process(pid).children(recursive=True)):
        with contextlib.suppress(psutil.Error):  # it has ended meanwhile
            if child.cmdline()[:1] == ["ray::cavmae_task"]:
                tasks.append(child)
    return tasks


def wait_for(out: Path, pattern: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while not list(out.glob(pattern)):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)


def extracting(cluster: Any) -> psutil.Process:
    """A process that extracts an input now."""
    deadline = time.monotonic() + 120
    while True:
        assert time.monotonic() < deadline
        for task in task_processes(cluster):
            with contextlib.suppress(psutil.Error):
                for child in task.children(recursive=True):
                    if any(file.path.endswith(".part") for file in child.open_files()):
                        return child


def test_the_same_bytes_after_processes_a_node_and_the_program_were_killed(
    cluster: Any, many: Path, expected: Path, tmp_path: Path
) -> None:
    """First a process that extracts an input, then Ray's own that it belongs to."""
    out = tmp_path / "out"
    words = [sys.executable, "-m", "cavmae.tools.shard", str(many), "--out", str(out)]
    process = subprocess.Popen([*words, *ray_words(cluster)], stderr=subprocess.PIPE)
    wait_for(out, ".work/*.part", process)
    extracting(cluster).kill()
    deadline = time.monotonic() + 60
    while not (victims := task_processes(cluster)):  # between two tasks
        assert time.monotonic() < deadline
    victims[0].kill()
    wait_for(out, "clips-000003.tar", process)
    cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
    wait_for(out, "clips-000008.tar", process)
    process.send_signal(signal.SIGKILL)
    said = process.communicate(timeout=60)[1]
    assert b"is read again (WorkerCrashedError" in said
    assert not (out / "manifest.json").exists()
    cluster.add_node(**NODE)
    done = subprocess.run(
        [*words, *ray_words(cluster)], stderr=subprocess.PIPE, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr.decode()
    assert b"inputs were done before" in done.stderr
    assert contents(out) == contents(expected)
    assert skipped(out) == {"broken.mp4": "decode_error"}


def test_an_input_that_always_crashes_is_tried_on_two_nodes(cluster: Any, tmp_path: Path) -> None:
    """Twice on each; a kill from outside is none of its crashes."""
    marks = tmp_path / "marks"
    marks.mkdir()
    events = pool(cluster, tmp_path, [f"mark {marks}", f"once {tmp_path / 'x'}"])
    ends = {e.task: e for e in events if isinstance(e, Finished | Lost)}
    assert isinstance(ends[0], Lost) and ends[0].reason == "crash"
    assert isinstance(ends[1], Finished)
    attempts = Counter(path.name.partition("-")[0] for path in marks.iterdir())
    assert sorted(attempts.values()) == [2, 2]


def test_a_node_that_cannot_import_ends_the_run(cluster: Any, many: Path, tmp_path: Path) -> None:
    """It fails fast, and would draw all inputs."""
    (tmp_path / "webdataset.py").write_text("raise ImportError('no good')")
    node = cluster.add_node(**NODE, env_vars={"PYTHONPATH": str(tmp_path)})
    words = [str(many), "--out", str(tmp_path / "out"), *ray_words(cluster)]
    done = subprocess.run(
        [sys.executable, "-m", "cavmae.tools.shard", *words], stderr=subprocess.PIPE, check=False,
        timeout=200,
    )  # fmt: skip
    cluster.remove_node(node)
    assert done.returncode == 1
    last = done.stderr.decode().splitlines()[-1]
    assert f"{platform.node()} cannot import webdataset (ImportError: no good): install" in last
    assert not list((tmp_path / "out").glob(".work/ray-*"))


def test_a_long_video_in_stretches(cluster: Any, tmp_path: Path) -> None:
    path = make_video(tmp_path / "long.mp4", dataclasses.replace(SMALL, seconds=20.0))
    alone, split = tmp_path / "alone", tmp_path / "split"
    assert main([str(path), "--out", str(alone), "--workers", "1", *WORDS]) == 0
    words = [str(path), "--out", str(split), "--stretch-minutes", "0.1", *ray_words(cluster)]
    process = subprocess.Popen([sys.executable, "-m", "cavmae.tools.shard", *words])
    wait_for(split, ".work/*-0.3.part", process)
    assert process.wait(timeout=120) == 0
    assert contents(split) == contents(alone)


def test_a_program_that_is_interrupted_leaves_no_task_behind(
    cluster: Any, many: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = [sys.executable, "-m", "cavmae.tools.shard", str(many), "--out", str(out)]
    process = subprocess.Popen([*words, *ray_words(cluster)], stderr=subprocess.PIPE)
    wait_for(out, ".work/*.json", process)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert b"interrupted" in said and b"Traceback" not in said, said.decode()
    assert not list(out.glob(".work/ray-*"))
    deadline = time.monotonic() + 30
    while task_processes(cluster):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def pool(cluster: Any, folder: Path, arguments: list[str], **changes: Any) -> list[Event]:
    limits = {"workers": 0, "timeout": 15.0, "memory_bytes": 1e9, **changes}
    tasks = iter(enumerate(arguments))
    return list(ray_pool.run(tasks, faulty.say, cluster.address, folder, **limits))


def test_events_are_those_of_the_local_pool(cluster: Any, tmp_path: Path) -> None:
    events = pool(cluster, tmp_path, ["a", "raise", "exit", "kill", "sleep", "grow", "b"])
    assert Counter(type(event) for event in events) == {
        TaskProgress: 7, Finished: 2, Lost: 5, Restarted: 3,
    }  # fmt: skip
    lost = {event.task: (event.reason, event.detail) for event in events if isinstance(event, Lost)}
    assert lost[1] == ("crash", "ValueError: oh")
    assert "code 3" in lost[2][1] and "was killed" in lost[3][1]
    assert lost[4] == ("timeout", "no message for 15 s")
    assert lost[5][0] == "out_of_memory"
    assert {e.task: e.result[0] for e in events if isinstance(e, Finished)} == {0: "a", 6: "b"}
    assert list(tmp_path.iterdir()) == []


def test_errors_end_the_run(cluster: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no Ray cluster can be joined"):
        list(ray_pool.run(iter([]), faulty.say, "127.0.0.1:1", tmp_path, 1, 1.0, 1e9))
    with pytest.raises(CavmaeError, match="stop everything"):
        pool(cluster, tmp_path, ["a", "stop"])


def test_a_node_has_to_see_the_output_and_to_have_the_same_version(tmp_path: Path) -> None:
    order = Order(
        number=0, argument="a", attempt=0, work=faulty.say, cwd="/no/such/folder", mail=tmp_path,
        token="x", version=importlib.metadata.version("cavmae"), timeout=30.0, memory_bytes=1e9,
    )  # fmt: skip
    with pytest.raises(CavmaeError, match=r"does not see .* a file system that all nodes"):
        list(execute(order))
    with pytest.raises(CavmaeError, match=r"this program is 9\.9: install the same"):
        list(execute(dataclasses.replace(order, version="9.9")))
    (tmp_path / "token").write_text("x")
    *signs, digest = execute(order)
    assert signs and not any(signs) and digest is not None
    assert hashlib.sha256(order.report.read_bytes()).hexdigest() == digest


def test_ray_is_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"pip install 'cavmae\[ray\]'"):
        list(ray_pool.run(iter([]), faulty.say, "auto", tmp_path, 1, 1.0, 1e9))


@pytest.mark.skipif(not os.environ.get("CAVMAE_CLUSTER"), reason=SKIPPED)  # before its fixtures
def test_a_cluster_whose_head_node_ends(many: Path, expected: Path, tmp_path: Path) -> None:
    """Ray would end the program after a minute, with its own report and the lock left behind."""
    from ray.cluster_utils import Cluster

    head = {**NODE, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    out = tmp_path / "out"
    words = [sys.executable, "-m", "cavmae.tools.shard", str(many), "--out", str(out)]
    process = subprocess.Popen([*words, *ray_words(cluster)], stderr=subprocess.PIPE)
    try:
        wait_for(out, "clips-000001.tar", process)
        cluster.head_node.all_processes["gcs_server"][0].process.kill()
        said = process.communicate(timeout=120)[1].decode()
    finally:
        process.kill()
        cluster.head_node.kill_all_processes(check_alive=False)
    assert process.returncode == 1
    assert f"The head node of the Ray cluster, {cluster.address}, has not answered" in said
    assert "Traceback" not in said and "core_worker" not in said
    assert not list(out.glob(".work/ray-*")) and not (out / ".work" / "lock").exists()
    assert main([str(many), "--out", str(out), "--workers", "2", *WORDS]) == 0
    assert contents(out) == contents(expected)
