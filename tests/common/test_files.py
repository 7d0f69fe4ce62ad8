"""Local and remote files; S3 is moto's real server on this machine."""

import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cavmae.common import files
from cavmae.common.errors import CavmaeError, ShardError
from cavmae.common.remote import filesystem
from cavmae.datasets.format.manifest import Manifest
from cavmae.datasets.stream.loader import Loader
from cavmae.datasets.stream.shard_reader import Access
from cavmae.datasets.stream.stream import EvalStream, TrainStream
from cavmae.datasets.stream.view import View
from cavmae.tools.check import CheckSettings
from cavmae.tools.checking.verify import check
from tests.conftest import make_shards
from tests.object_store import object_store
from tests.tools.helpers import TINY, infos

BUCKET = "s3://clips"


@pytest.fixture(scope="module")
def s3() -> Iterator[object]:
    with object_store() as store:
        yield store.system


@pytest.fixture(scope="module")
def remote(s3: object, data_set: Manifest) -> str:
    for path in Path(data_set.folder).iterdir():
        s3.put_file(str(path), f"clips/set/{path.name}")  # type: ignore[attr-defined]
    return f"{BUCKET}/set"


VIEW = View(fbank_frames=64)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_from_s3_is_that_from_disk(
    remote: str, data_set: Manifest, tmp_path: Path, workers: int
) -> None:
    access = Access(cache_dir=str(tmp_path / "cache"))
    remote_loader = Loader(TrainStream(Manifest.load(remote), VIEW, 3, access=access), workers)
    local_loader = Loader(TrainStream(data_set, VIEW, 3), workers)
    for number, (first, second) in enumerate(zip(remote_loader, local_loader, strict=False)):
        assert first["key"] == second["key"]
        assert (first["frames"] == second["frames"]).all()
        if number == 12:
            break
    seen = [k for b in Loader(EvalStream(Manifest.load(remote), VIEW, 5, access=access)) for k in
            b["key"]]  # fmt: skip
    assert len(set(seen)) == len(seen) == 24


def test_a_changed_shard_on_s3_is_refused(
    remote: str, s3: object, tmp_path: Path, data_set: Manifest
) -> None:
    manifest = Manifest.load(remote)
    name = manifest.shards[0].file
    good = (Path(data_set.folder) / name).read_bytes()
    bad = bytearray(good)
    bad[len(bad) // 2] ^= 1
    s3.pipe_file(f"clips/set/{name}", bytes(bad))  # type: ignore[attr-defined]
    access = Access(cache_dir=str(tmp_path / "cache"))
    try:
        with pytest.raises(CavmaeError, match=f"{name} was altered"):
            list(Loader(EvalStream(manifest, VIEW, 5, access=access)))
        assert name not in [p.name for p in (tmp_path / "cache").iterdir()]
        s3.pipe_file(f"clips/set/{name}", bytes(bad[:-1]))  # type: ignore[attr-defined]
        with pytest.raises(ShardError, match="bytes, the manifest says"):
            EvalStream(manifest, VIEW, 5, access=access)
        s3.rm_file(f"clips/set/{name}")  # type: ignore[attr-defined]
        with pytest.raises(ShardError, match="missing"):
            EvalStream(manifest, VIEW, 5, access=access)
    finally:
        s3.pipe_file(f"clips/set/{name}", good)  # type: ignore[attr-defined]


def test_checking_and_sharding_on_s3(
    remote: str, s3: object, tmp_path: Path, video: object
) -> None:
    settings = CheckSettings(
        out=str(tmp_path / "report"), workers=1, sheet=2, cache_dir=str(tmp_path / "cache")
    )
    assert check(remote, settings) == 0
    assert (tmp_path / "report" / "stats.json").exists()
    s3.put_file(str(video("a.mp4")), "clips/in/a.mp4")  # type: ignore[attr-defined, operator]
    assert make_shards([f"{BUCKET}/in/a.mp4"], tmp_path / "out", **TINY) == 0
    assert {info.source for info in infos(tmp_path / "out")} == {f"{BUCKET}/in/a.mp4"}


def test_a_file_that_cannot_be_written_has_its_own_name(tmp_path: Path) -> None:
    with (
        pytest.raises(OSError, match=r"none/a\.json'$"),
        files.write_atomically(tmp_path / "none" / "a.json"),
    ):
        pass


def test_missing_files(s3: object, tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="no data set"):
        Manifest.load(f"{BUCKET}/nothing")
    with pytest.raises(CavmaeError, match="scheme"):
        filesystem("nosuch://x/y")
    with pytest.raises(OSError, match="bucket"):
        files.read_bytes("s3://no-such-bucket-at-all/x")


def test_atomic_writes_leave_the_old_file_when_they_fail(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("old")
    with pytest.raises(RuntimeError), files.write_atomically(path) as file:
        file.write(b"half")
        assert path.read_text() == "old"
        raise RuntimeError
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
    with files.write_atomically(path) as file:
        file.write(b"new")
    assert path.read_text() == "new"


def listed_files(folder: Path, count: int) -> list[tuple[str, str]]:
    listed = []
    for number in range(count):
        path = folder / f"source-{number}"
        path.write_bytes(bytes([number]) * 1000)
        listed.append((f"file://{path}", hashlib.sha256(path.read_bytes()).hexdigest()))
    return listed


def test_the_cache_stays_within_its_limit(tmp_path: Path) -> None:
    cache = files.Cache(str(tmp_path / "cache"), 3500)
    sources = listed_files(tmp_path, 5)
    for url, digest in sources:
        path = cache.fetch(url, digest)
        assert files.sha256_of(path) == digest
    kept = {p.stem for p in (tmp_path / "cache").iterdir()}
    assert kept == {digest for _, digest in sources[2:]}  # those used last
    assert cache.fetch(*sources[4]).read_bytes() == bytes([4]) * 1000


def test_the_cache_leaves_foreign_files(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    (folder / "backup.tar").write_bytes(bytes(10_000))
    cache = files.Cache(str(folder), 1500)
    for url, digest in listed_files(tmp_path, 3):
        cache.fetch(url, digest)
    assert (folder / "backup.tar").exists()
    assert len(list(folder.iterdir())) == 2


def test_many_threads_may_fetch_at_once(tmp_path: Path) -> None:
    ((url, digest),) = listed_files(tmp_path, 1)
    results = []

    def fetch() -> None:
        results.append(files.Cache(str(tmp_path / "cache"), 10**6).fetch(url, digest))

    threads = [threading.Thread(target=fetch) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    assert [p.name for p in (tmp_path / "cache").iterdir()] == [f"{digest}.tar"]
