"""Accepted addresses, and downloads from a faulty server."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from cavmae.common import files
from cavmae.common.errors import CavmaeError, ShardError
from cavmae.common.remote import (
    AddressError,
    Limits,
    RemoteError,
    check_address,
    fetch,
    filesystem,
    local_path,
    size_of,
)
from cavmae.datasets.format.manifest import Manifest
from tests.serving import refusing, serving

CONTENT = bytes(range(256)) * 4096  # 1 MB


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "a.bin").write_bytes(CONTENT)
    with serving(tmp_path / "served") as address:
        yield address


@pytest.mark.parametrize(
    "url",
    [
        "htps://example.org/a.mp4", "reference://x", "zip://a.mp4", "memory://a", "ftp://h/a",
        "ssh://h/a", "github://a:b@/c", "dir://x", "simplecache::http://127.0.0.1/a",
        "zip://a.mp4::http://127.0.0.1/a.zip", "http://127.0.0.1/a::file:///etc/passwd",
        "reference://x::file:///tmp/ref.json", "filecache::s3://b/a", "s3://", "https:///",
        "abstract://x", "pipe://echo", "http://[bad/x", "http://a b/c", "http:///x",
    ],
)  # fmt: skip
def test_refused_addresses(url: str, tmp_path: Path) -> None:
    assert files.is_url(url)
    for call in (check_address, filesystem, files.read_bytes, files.size_of):
        with pytest.raises(AddressError) as caught:
            call(url)
        assert url in str(caught.value)
        assert caught.value.reason == "bad_address"
    with pytest.raises(AddressError):
        fetch(url, tmp_path / "x")
    with pytest.raises(CavmaeError):
        Manifest.load(url)
    with pytest.raises(CavmaeError):
        files.Cache(str(tmp_path / "cache"), 10**6).fetch(url, "0" * 64)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    known = fsspec.get_filesystem_class

    def missing(scheme: str) -> type:
        if scheme == "gcs":
            raise ImportError("Please install gcsfs")
        return known(scheme)

    monkeypatch.setattr(fsspec, "get_filesystem_class", missing)
    with pytest.raises(AddressError, match="pip install gcsfs") as caught:
        check_address("gcs://bucket/a.mp4")
    assert caught.value.reason == "no_package"


@pytest.mark.parametrize(
    "url", ["HTTPS://example.org/a", "s3://b/a::b", "http://[::1]:80/a", "hf://datasets/a/b/c"]
)
def test_accepted_addresses(url: str) -> None:
    check_address(url)
    assert local_path(url) is None


def test_files_of_this_machine(tmp_path: Path) -> None:
    (tmp_path / "a b").write_bytes(b"abc")
    url = f"file://{tmp_path}/a b"
    assert local_path(url) == f"{tmp_path}/a b"
    assert (files.read_bytes(url), files.size_of(url)) == (b"abc", 3)
    with pytest.raises(OSError, match="regular"):
        files.read_bytes("file:///dev/zero")


def test_a_download(server: str, tmp_path: Path) -> None:
    fetch(f"{server}/file/a.bin?signature=x", tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == CONTENT
    assert files.read_bytes(f"{server}/file/a.bin", len(CONTENT)) == CONTENT
    assert size_of(f"{server}/file/a.bin") == len(CONTENT)
    with pytest.raises(RemoteError, match="larger than the limit"):
        files.read_bytes(f"{server}/file/a.bin", len(CONTENT) - 1)


@pytest.mark.parametrize(
    ("kind", "kinds", "reason"),
    [
        ("404", FileNotFoundError, None),
        ("410", FileNotFoundError, None),
        ("403", PermissionError, None),
        ("401", PermissionError, None),
        ("503", RemoteError, "unreachable"),
        ("429", RemoteError, "unreachable"),
        ("cut", RemoteError, "unreachable"),
        ("stall", RemoteError, "stalled"),
        ("silent", RemoteError, "stalled"),
        ("endless", RemoteError, "too_large"),
        ("big", RemoteError, "too_large"),
    ],
)
def test_downloads_that_fail(
    server: str, tmp_path: Path, kind: str, kinds: type[OSError], reason: str | None
) -> None:
    (tmp_path / "out").mkdir()
    started = time.monotonic()
    with pytest.raises(kinds) as caught:
        fetch(f"{server}/{kind}/a.bin", tmp_path / "out" / "x", Limits(4e6, 1.5))
    assert getattr(caught.value, "reason", None) == reason
    assert f"{server}/{kind}/a.bin" in str(caught.value)
    assert time.monotonic() - started < 10
    assert not list((tmp_path / "out").iterdir())


def test_missing_hosts_are_not_missing_files(tmp_path: Path) -> None:
    for host in (refusing(), "http://no-such-host.invalid"):
        for call in (lambda url: fetch(url, tmp_path / "x"), size_of, files.read_bytes):
            with pytest.raises(RemoteError) as caught:
                call(f"{host}/a.mp4")
            assert caught.value.reason == "unreachable"
        with pytest.raises(ShardError, match="Cannot read"):
            Manifest.load(host)


def test_a_download_reports_progress(server: str, tmp_path: Path) -> None:
    calls = []
    with pytest.raises(RemoteError, match=r"bytes arrived in 1\.5 s"):
        fetch(f"{server}/stall/a.bin", tmp_path / "x", Limits(4e6, 1.5), lambda: calls.append(1))
    assert calls == [1]  # half of the file has arrived, then nothing


def test_an_abandoned_download_ends(server: str, tmp_path: Path) -> None:
    before = threading.active_count()
    with pytest.raises(RemoteError):
        fetch(f"{server}/endless/a.bin", tmp_path / "x", Limits(1e6, 1.0))
    deadline = time.monotonic() + 10
    while threading.active_count() > before + 1 and time.monotonic() < deadline:
        time.sleep(0.05)  # the server's own thread and fsspec's loop may remain
    assert threading.active_count() <= before + 1
    assert not (tmp_path / "x").exists()
