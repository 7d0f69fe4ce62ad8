"""Runs of `cavmae shard` to the store of the fixture ``s3``."""

import dataclasses
import threading
from collections.abc import Callable
from pathlib import Path

from tests.conftest import make_shards
from tests.object_store import ObjectStore, Request
from tests.tools.helpers import RUN_SETTINGS, TINY

OUT = "s3://clips/set"


def to_store(inputs: Path | str, local: Path, out: str = OUT, **changes: object) -> int:
    """Shards in this process, built in the folder ``local``."""
    run_settings = dataclasses.replace(RUN_SETTINGS, local_folder=str(local), **changes)
    return make_shards(str(inputs), out, run_settings, **TINY)  # type: ignore[arg-type]


def sent(s3: ObjectStore) -> list[str]:
    """Names of the objects that were created or replaced, without the record of progress."""
    return [name for name in s3.created() if not name.startswith("progress")]


def shards_in(local: Path) -> list[Path]:
    return sorted(local.glob("*.tar"))


def held(s3: ObjectStore, when: Callable[[Request], bool]) -> tuple[threading.Event, ...]:
    """Holds the answer to the first such request; events of its arrival and of its release."""
    arrived, released = threading.Event(), threading.Event()

    def fault(request: Request) -> None:
        if when(request) and not arrived.is_set():
            arrived.set()
            released.wait(300)

    s3.fault = fault
    return arrived, released
