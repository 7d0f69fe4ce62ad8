"""Shards: plain tar files of samples, written by webdataset and read strictly.

Any WebDataset reader can read them. Ours does not unpack archives: it reads the 512-byte headers,
accepts only plain files of bounded size with a sample's member names
(:mod:`cavmae.datasets.format.sample`), and then reads just the bytes that are asked for. Anything
else in a shard (links, folders, long names, pickles, sizes beyond the file) is an error before a
byte of content is looked at.
"""

import dataclasses
import io
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import webdataset

from cavmae.common.errors import SampleError, ShardError
from cavmae.datasets.format.sample import member_limit, split_member

BLOCK = 512
END = bytes(2 * BLOCK)  # two empty blocks end a tar file
_CHECKSUM = slice(148, 156)


def encode_sample(key: str, members: Mapping[str, bytes]) -> bytes:
    """A sample as the blocks of a tar file, without its end mark; the same bytes at all times.

    Samples are joined by joining these, and :data:`END`.
    """
    buffer = io.BytesIO()
    with webdataset.TarWriter(
        buffer, encoder=False, user="", group="", mode=0o644, mtime=0
    ) as writer:
        writer.write({"__key__": key, **members})
        size = writer.tarstream.offset
    return buffer.getvalue()[:size]


@dataclasses.dataclass(frozen=True)
class Entry:
    """One sample in a shard: for each member's extension, where its bytes lie."""

    key: str
    members: dict[str, tuple[int, int]]  # extension: (offset, size)


class Shard:
    """An open shard of this machine; reads members by position.

    Raises:
        ShardError: the file is no well-formed shard.
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
        """Bytes of a member.

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
                    raise self._damaged(f"sample {key} stands in it twice")
                seen.add(key)
                entries.append(Entry(key, {}))
            if extension in entries[-1].members:
                raise self._damaged(f"member {name} stands in it twice")
            entries[-1].members[extension] = offset, size
        return entries

    def _headers(self) -> tuple[list[bytes], list[int]]:
        """Header blocks of all members, and where each one's content begins."""
        headers, offsets = [], []
        position = 0
        while True:
            header = os.pread(self._file, BLOCK, position)
            if len(header) < BLOCK:
                raise self._damaged("it ends without an end mark: cut off")
            if not header.strip(b"\0"):
                break
            if header[257:263] not in (b"ustar\0", b"ustar ") or header[156:157] not in b"0\0":
                raise self._damaged(f"a member at byte {position} is no plain file")
            if header[345:500].strip(b"\0"):
                raise self._damaged(f"a member at byte {position} lies in a folder")
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

    def _damaged(self, what: str) -> ShardError:
        return ShardError(
            f"Shard {self.path} is damaged or not one of ours: {what}. "
            "Copy it again or make the data set anew."
        )


def _octal(field: bytes) -> int:
    text = field.strip(b"\0 ")
    if not text.isdigit() or b"8" in text or b"9" in text:
        return -1
    return int(text, 8)


def _content_size(header: bytes) -> int:
    """Content size; -1 for anything but plain octal (base-256 sizes are beyond every limit)."""
    return _octal(header[124:136])


def samples_of(shard: Shard) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Every sample of a shard with all its members."""
    for entry in shard.entries:
        yield entry.key, {extension: shard.read(entry, extension) for extension in entry.members}
