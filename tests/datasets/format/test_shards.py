"""Untrusted shards: anything but plain samples is refused before its content is read."""

import io
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import webdataset

from cavmae.common.errors import SampleError, ShardError
from cavmae.datasets.format.shards import END, Shard, encode_sample
from tests.tools.helpers import samples_of

MEMBERS = {"json": b"{}", "000.jpg": b"frame", "fbank.npy": b"x" * 1000}


def write(path: Path, *blocks: bytes) -> Path:
    path.write_bytes(b"".join([*blocks, END]))
    return path


def test_round_trip_and_reading_a_part(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", *(encode_sample(f"k{i}", MEMBERS) for i in range(3)))
    with Shard(path) as shard:
        assert [key for key, _ in samples_of(shard)] == ["k0", "k1", "k2"]
        assert dict(samples_of(shard))["k1"] == MEMBERS
        with pytest.raises(SampleError, match="missing_member"):
            shard.read(shard.entries[0], "flac")


def test_the_same_bytes_at_all_times() -> None:
    assert encode_sample("k", MEMBERS) == encode_sample("k", dict(reversed(MEMBERS.items())))


def test_webdataset_reads_it(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", *(encode_sample(f"k{i}", MEMBERS) for i in range(3)))
    with tarfile.open(path) as archive:
        assert len(archive.getnames()) == 9
    samples = list(webdataset.WebDataset(str(path), shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == ["k0", "k1", "k2"]
    assert samples[0]["fbank.npy"] == MEMBERS["fbank.npy"]


def archive(add: Callable[[tarfile.TarFile], None], **options: object) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", **options) as tar:  # type: ignore[call-overload]
        add(tar)
    return buffer.getvalue()


def plain(name: str, data: bytes = b"x", **fields: object) -> Callable[[tarfile.TarFile], None]:
    def add(tar: tarfile.TarFile) -> None:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        for field, value in fields.items():
            setattr(info, field, value)
        tar.addfile(info, io.BytesIO(data))

    return add


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (open, ("executed",))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (archive(plain("k.pkl", pickle.dumps(Bomb()))), "not one of a sample"),
        (archive(plain("../../x.json")), "not one of a sample"),
        (archive(plain("/tmp/x.json")), "not one of a sample"),
        (archive(plain("k.json", type=tarfile.SYMTYPE, linkname="/etc/passwd")), "no regular file"),
        (archive(plain("k.json", type=tarfile.LNKTYPE, linkname="x")), "no regular file"),
        (archive(plain("k", b"", type=tarfile.DIRTYPE)), "no regular file"),
        (archive(plain("k.json", type=tarfile.FIFOTYPE)), "no regular file"),
        (archive(plain("x" * 150 + ".json"), format=tarfile.GNU_FORMAT), "no regular file"),
        (archive(plain("ä" * 60 + ".json"), format=tarfile.PAX_FORMAT), "no regular file"),
        (archive(plain("d/" * 60 + "k.json"), format=tarfile.USTAR_FORMAT), "folder"),
        (encode_sample("k", MEMBERS) * 2 + END, "twice"),
        (encode_sample("k", MEMBERS), "truncated"),
        (encode_sample("k", MEMBERS)[:-512], "claims 2 bytes"),
        (b"", "truncated"),
        (b"not a tar file at all" * 100, "no regular file"),
        (b"\x1f\x8b" + bytes(2000), "no regular file"),
    ],
)
def test_refused(tmp_path: Path, content: bytes, complaint: str) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(content)
    with pytest.raises(ShardError, match=complaint) as caught:
        Shard(path)
    assert str(path) in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["a.tar"]  # nothing was written


def huge(octal: bytes) -> bytes:
    header = bytearray(encode_sample("k", {"json": b"{}"})[:512])
    header[124:136] = octal
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + bytes(512) + END


@pytest.mark.parametrize(
    "size", [b"%012o" % (10 << 30), b"\x80" + (10 << 30).to_bytes(11, "big"), b"-0000000001\0"]
)
def test_a_10_gb_header_allocates_nothing(tmp_path: Path, size: bytes) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(huge(size))
    with pytest.raises(ShardError, match="claims"):
        Shard(path)


def test_a_size_within_the_file_but_beyond_the_limit(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", encode_sample("k", {"json": bytes(5 << 20)}))
    with pytest.raises(ShardError, match="claims"):
        Shard(path)


def test_a_flipped_header_byte(tmp_path: Path) -> None:
    content = bytearray(encode_sample("k", MEMBERS) + END)
    content[101] ^= 1  # the mode: harmless, but the checksum is wrong
    path = tmp_path / "a.tar"
    path.write_bytes(content)
    with pytest.raises(ShardError, match="checksum"):
        Shard(path)
