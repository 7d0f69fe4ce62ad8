"""Sizes of many objects of S3 by few requests: listings of their folders."""

import functools
import itertools
import logging
import re
from collections.abc import Collection, Iterator
from typing import Any

from cavmae.common import remote
from cavmae.common.errors import CavmaeError
from cavmae.common.remote import DEFAULT_LIMITS, Meter, run_watched

log = logging.getLogger("cavmae")
OBJECT = re.compile(r"s3://[^/]+/(?:.*/)?[^/]+")
PAGE = 1000  # objects that a request lists
NAMES_PER_PAGE = 100  # wanted ones for which a page is read; of a folder with more others it stops
LEAST_PAGES = 10  # of a folder
MOST_PAGES = 300  # of all folders: about half a minute


def listed_sizes(urls: Collection[str]) -> dict[str, int]:
    """Sizes in bytes of those objects of S3 whose folders can be listed cheaply.

    Args:
        urls: addresses; those of other schemes are left out.
    """
    folders: dict[str, list[str]] = {}
    for url in sorted(url for url in urls if OBJECT.fullmatch(url)):
        folder, _, name = url.rpartition("/")
        folders.setdefault(folder, []).append(name)
    sizes: dict[str, int] = {}
    left = MOST_PAGES
    for folder, names in folders.items():
        limit = min(left, LEAST_PAGES + len(names) // NAMES_PER_PAGE)
        try:
            pages = run_watched(
                folder, functools.partial(_first_pages, folder, names, limit), DEFAULT_LIMITS,
                Meter(float("inf")), None,
            )  # fmt: skip
        except (OSError, CavmaeError) as error:  # rights to read need not be rights to list
            log.info("The sizes of files in %s are not known: %s.", folder, error)
            left -= 1
            continue
        left -= len(pages)
        known = {name: size for page in pages for name, size in page.items()}
        sizes |= {f"{folder}/{name}": known[name] for name in names if name in known}
        if left <= 0:
            break
    return sizes


def _first_pages(folder: str, names: list[str], limit: int) -> list[dict[str, int]]:
    return [*itertools.islice(_pages(folder, names), limit)]


def _pages(folder: str, names: list[str]) -> Iterator[dict[str, int]]:
    """Names and sizes of objects in a folder, page by page, from the first name to the last."""
    system, path = remote.filesystem(folder)
    bucket, key, _ = system.split_path(path)
    prefix = f"{key}/" if key else ""
    options: dict[str, Any] = {"StartAfter": f"{prefix}{names[0][:-1]}"}
    while True:
        page = system.call_s3(
            "list_objects_v2", Bucket=bucket, Prefix=prefix, Delimiter="/", MaxKeys=PAGE, **options
        )
        objects = {x["Key"].removeprefix(prefix): int(x["Size"]) for x in page.get("Contents", [])}
        yield objects
        if not page.get("IsTruncated") or max(objects, default="") >= names[-1]:
            return
        options = {"ContinuationToken": page["NextContinuationToken"]}
