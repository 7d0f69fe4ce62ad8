"""Shards: plain tar files of samples, written by webdataset and read strictly.

Any WebDataset reader can read them. The reader of this module does not unpack archives: it reads
the 512-byte headers, accepts only plain files of bounded size with a sample's member names
(:mod:`cavmae.datasets.format.sample`), and then reads only the bytes of requested members. Anything
else in a shard (links, folders, long names, pickles, sizes beyond the file) is an error before any
content is read.
"""

import dataclasses
import io
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from cavmae.common.errors import SampleError, ShardError
from cavmae.datasets.format.sample import member_limit, split_member

BLOCK = 512
END = bytes(2 * BLOCK)  # two empty blocks end a tar file
_CHECKSUM = slice(148, 156)


def encode_sample(key: str, members: Mapping[str, bytes]) -> bytes:
    """Encodes a sample as blocks of a tar file, deterministically and without an end mark.

    A shard is the concatenation of its samples and :data:`END`.
    """
    import webdataset  # with PyTorch: those that only read or join shards go without

    buffer = io.BytesIO()
    with webdataset.TarWriter(
        buffer, encoder=False, user="", group="", mode=0o644, mtime=0
    ) as writer:
        writer.write({"__key__": key, **members})
        size = writer.tarstream.offset
    return buffer.getvalue()[:size]


@dataclasses.dataclass(frozen=True)
class Entry:
    """Index entry of a sample in a shard: byte ranges of its members, by extension."""

    key: str
    members: dict[str, tuple[int, int]]  # extension: (offset, size)


class Shard:
    """An open local shard, indexed; reads members by position.

    Raises:
        ShardError: the file is missing or no well-formed shard.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            self._file = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise ShardError(f"Cannot open shard {path}: {error.strerror}.") from error
        try:
            self.size = os.fstat(self._file).st_size
            self.entries = self._scan()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> "Shard":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def read(self, entry: Entry, extension: str) -> bytes:
        """Reads the bytes of a member.

        Raises:
            SampleError: ``missing_member``.
            ShardError: the file has shrunk since it was opened.
        """
        if extension not in entry.members:
            raise SampleError("missing_member", f"{entry.key} has no {extension}")
        offset, size = entry.members[extension]
        data = os.pread(self._file, size, offset)
        if len(data) != size:
            raise ShardError(f"Shard {self.path} ends inside {entry.key}.{extension}.")
        return data

    def _scan(self) -> list[Entry]:
        headers, offsets = self._headers()
        self._check_checksums(headers)
        entries: list[Entry] = []
        seen: set[str] = set()
        for header, offset in zip(headers, offsets, strict=True):
            name = header[:100].rstrip(b"\0").decode("ascii", "replace")
            try:
                key, extension = split_member(name)
            except SampleError as error:
                raise self._damaged(error.detail) from error
            size = _content_size(header)
            if size > member_limit(extension):
                raise self._damaged(f"{name} claims {size} bytes")
            if not entries or entries[-1].key != key:
                if key in seen:
                    raise self._damaged(f"it has sample {key} twice")
                seen.add(key)
                entries.append(Entry(key, {}))
            if extension in entries[-1].members:
                raise self._damaged(f"it has member {name} twice")
            entries[-1].members[extension] = offset, size
        return entries

    def _headers(self) -> tuple[list[bytes], list[int]]:
        """Header blocks of all members, and the offsets of their content."""
        headers, offsets = [], []
        position = 0
        while True:
            header = os.pread(self._file, BLOCK, position)
            if len(header) < BLOCK:
                raise self._damaged("it is truncated: the end mark is missing")
            if not header.strip(b"\0"):
                break
            if header[257:263] not in (b"ustar\0", b"ustar ") or header[156:157] not in b"0\0":
                raise self._damaged(f"a member at byte {position} is no regular file")
            if header[345:500].strip(b"\0"):
                raise self._damaged(f"a member at byte {position} has a folder in its name")
            size = _content_size(header)
            if size < 0 or position + BLOCK + size > self.size:
                raise self._damaged(f"a member at byte {position} claims {size} bytes")
            headers.append(header)
            offsets.append(position + BLOCK)
            position += BLOCK + -(-size // BLOCK) * BLOCK
        return headers, offsets

    def _check_checksums(self, headers: list[bytes]) -> None:
        if not headers:
            return
        blocks = np.frombuffer(b"".join(headers), np.uint8).reshape(-1, BLOCK)
        stored = blocks[:, _CHECKSUM]
        sums = blocks.sum(1, dtype=np.int64) - stored.sum(1, dtype=np.int64) + 8 * ord(" ")
        for header, total in zip(headers, sums, strict=True):
            if _octal(header[_CHECKSUM]) != total:
                raise self._damaged("a header's checksum is wrong")

    def _damaged(self, detail: str) -> ShardError:
        return ShardError(
            f"Shard {self.path} is damaged or not written by cavmae: {detail}. "
            "Copy it again, or run `cavmae shard` again."
        )


def _octal(field: bytes) -> int:
    text = field.strip(b"\0 ")
    if not text.isdigit() or b"8" in text or b"9" in text:
        return -1
    return int(text, 8)


def _content_size(header: bytes) -> int:
    """Content size in bytes; -1 if it is not plain octal (base-256 sizes exceed every limit)."""
    return _octal(header[124:136])
