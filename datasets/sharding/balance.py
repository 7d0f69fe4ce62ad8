"""Balance of the parts of a data set: the work of each input, and its part.

The unit of work is a second of video. A stretch whose end is known counts its seconds; anything
else is estimated by the size of its file. Sizes are those of local files, and those that a listing
of folders of S3 gives; to ask a server for each address would take hours for a long list.
"""

import contextlib
import heapq
import os
from collections.abc import Sequence

from cavmae.common.files import is_url
from cavmae.common.listings import listed_sizes
from cavmae.common.remote import local_path
from cavmae.datasets.sharding.inputs import Input

BYTES_PER_SECOND = 250_000  # of a usual video, 2 Mbit/s: compares whole files with stretches
LEAST_BYTES_PER_SECOND = 10_000  # of any: an end far beyond the file's own counts as that


def balanced_shares(work: Sequence[tuple[str, float]], count: int) -> dict[str, int]:
    """Part of each input, from 1, such that all parts have about the same work.

    The largest input first, each goes to the smallest part so far (LPT, Graham 1969): no part is
    larger than 4/3 of the smallest possible largest one.

    Args:
        work: identity and work of each input.
        count: number of parts.
    """
    loads = [(0.0, 0, part) for part in range(1, count + 1)]  # work, inputs, part: a heap
    shares = {}
    for identity, size in sorted(work, key=lambda pair: (-pair[1], pair[0])):
        total, inputs, part = loads[0]
        heapq.heapreplace(loads, (total + size, inputs + 1, part))
        shares[identity] = part
    return shares


def work_of(items: Sequence[Input]) -> list[tuple[str, float]]:
    """Identity of each input, and its estimated seconds of video.

    An input of which nothing is known counts as the mean of the others.
    """
    sizes = _sizes(items)
    seconds = [_seconds(item, sizes.get(item.source)) for item in items]
    known = [value for value in seconds if value is not None]
    mean = sum(known) / len(known) if known else 1.0
    return [
        (item.identity, mean if value is None else value)
        for item, value in zip(items, seconds, strict=True)
    ]


def _seconds(item: Input, size: int | None) -> float | None:
    """Seconds of an input by its stretch, else by the bytes of its file; None: neither is known."""
    start, end = item.start or 0.0, item.end
    if size is not None:
        limit = size / (BYTES_PER_SECOND if end is None else LEAST_BYTES_PER_SECOND)
        end = limit if end is None else min(end, limit)
    return None if end is None else max(0.0, end - start)


def _sizes(items: Sequence[Input]) -> dict[str, int]:
    """Bytes of the files whose size is known."""
    sizes = {}
    remote: set[str] = set()
    for source in dict.fromkeys(item.source for item in items):
        path = local_path(source) or source
        if is_url(path):
            remote.add(source)
            continue
        with contextlib.suppress(OSError, ValueError):  # a line in skipped.jsonl later
            sizes[source] = os.stat(path).st_size  # noqa: PTH116 - faster
    # A stretch with an end needs none.
    wanted = {item.source for item in items if item.end is None and item.source in remote}
    return sizes | listed_sizes(wanted)
