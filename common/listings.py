"""Sizes of many objects of S3 by few requests: listings of their folders."""

import functools
import logging
import re
from collections.abc import Collection, Iterator
from typing import Any

from cavmae.common import remote
from cavmae.common.remote import DEFAULT_LIMITS, AddressError, Meter, run_watched
from cavmae.common.stores import explained

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

    Raises:
        StoreError: a store cannot be reached.
    """
    folders: dict[str, list[str]] = {}
    for url in sorted(url for url in urls if OBJECT.fullmatch(url)):
        folder, _, name = url.rpartition("/")
        folders.setdefault(folder, []).append(name)
    sizes: dict[str, int] = {}
    left = MOST_PAGES
    for folder, names in folders.items():
        pages = _pages(folder, names)
        known: dict[str, int] = {}
        try:
            for _ in range(min(left, LEAST_PAGES + len(names) // NAMES_PER_PAGE)):
                left -= 1
                following = functools.partial(next, pages, None)
                page = run_watched(folder, following, DEFAULT_LIMITS, Meter(float("inf")), None)
                if page is None:
                    break
                known |= page
        except (PermissionError, FileNotFoundError, AddressError) as error:
            # Rights to read need not be rights to list.
            log.info("The sizes of files in %s are not known: %s.", folder, error)
        except OSError as error:  # what is known has to be the same on all machines
            raise explained(error, f"Cannot list {folder}") from error
        sizes |= {f"{folder}/{name}": known[name] for name in names if name in known}
        if left <= 0:
            break
    return sizes


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
