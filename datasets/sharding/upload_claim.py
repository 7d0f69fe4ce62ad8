"""Claim of a run on a data set at a store, or on a part of it: ``progress.json``.

The object names the local folder that the data set is built in and the process that works on it,
and holds what a machine with another, empty local folder needs to go on: the settings, the shards
that the store has, and how far they reach into the plan. It is there from the first upload until
the data set is complete. Whoever writes it replaces what it has read (compare-and-swap), so that of
two runs the one that lost the claim notices before its next upload.
"""

import contextlib
import dataclasses
import functools
import logging
import threading
import time
from collections.abc import Callable

from cavmae.common.errors import CavmaeError
from cavmae.common.json_files import JSONError, json_bytes, parse_json, typed
from cavmae.common.locks import Holder
from cavmae.common.store_records import RecordChanged, StoreRecord
from cavmae.common.stores import Stopped, Store, StoreError
from cavmae.datasets.format.manifest import LIMIT_BYTES
from cavmae.datasets.sharding.job_state import State

log = logging.getLogger("cavmae")
LEASE_SECONDS = 60.0  # after which a holder of another machine that writes nothing counts as dead
BEATS = 4  # writes of the holder in that time
POLLS = 12  # reads of a process that waits for it


@dataclasses.dataclass(frozen=True)
class UploadProgress:
    """Content of the claim.

    Attributes:
        owner: id of the local folder.
        planned: number of inputs.
        state: at the end of the last shard that the store has.
        skipped: content of ``skipped.jsonl`` then.
        holder: process that works on the data set; None: it has ended.
    """

    owner: str
    planned: int
    state: State
    skipped: str
    holder: Holder | None = None

    @classmethod
    def parse(cls, content: bytes, url: str) -> "UploadProgress":
        """Parses the object. Raises CavmaeError: it is damaged."""
        try:
            record = parse_json(content, url, limit_bytes=LIMIT_BYTES)
            holder = typed(record, "holder", dict, type(None))
            if holder is not None:
                start = typed(holder, "start", int, type(None))
                holder = Holder(typed(holder, "host", str), typed(holder, "pid", int), start)
            state = State.from_record(typed(record, "state", dict))
            state.take_shards(typed(record, "shards", list))
            skipped = typed(record, "skipped", str)
            owner, planned = typed(record, "owner", str), typed(record, "planned", int)
            if skipped.count("\n") != state.skipped:
                raise ValueError(f"it has {state.skipped} skipped inputs, and other lines of them")
        except (JSONError, ValueError) as error:
            raise CavmaeError(
                f"{url} is damaged ({error}): give the --local-folder of the last run, or remove "
                "the data set's folder and create it anew."
            ) from error
        return cls(owner, planned, state, skipped, holder)

    def is_held(self, age: Callable[[], float]) -> bool:
        """Whether a process that is alive works on the data set.

        That of another machine counts as alive while it writes the claim.

        Args:
            age: seconds since the last write.
        """
        if self.holder is None:
            return False
        alive = self.holder.is_alive
        return age() < LEASE_SECONDS if alive is None else alive

    @functools.cached_property
    def _body(self) -> dict[str, object]:
        return {
            "owner": self.owner,
            "planned": self.planned,
            "state": self.state.to_record(),
            "skipped": self.skipped,
            "shards": [vars(shard) for shard in self.state.shards],
        }

    def to_bytes(self, beat: int) -> bytes:
        """JSON of the object; each beat has other bytes."""
        holder = self.holder._asdict() if self.holder else None
        return json_bytes({"holder": holder, "beat": beat, **self._body})


class Claim:
    """Claim of this process on a data set at a store.

    Args:
        store: that receives the data set.
        name: of the object.
        on_failure: takes the error of a thread, if another run takes the claim.
    """

    def __init__(self, store: Store, name: str, on_failure: Callable[[CavmaeError], None]):
        self._record = StoreRecord(store, name)
        self.url = self._record.url
        self._on_failure = on_failure
        self._lock = threading.Lock()
        self._progress: UploadProgress | None = None
        self._beat, self._written = 0, 0.0
        self._lost: CavmaeError | None = None
        self._stop = threading.Event()

    @property
    def held(self) -> bool:
        """Whether this process took the claim, and did not give it back."""
        return self._progress is not None

    def read(self) -> UploadProgress | None:
        """Content at the store; None: there is no claim. Raises CavmaeError."""
        content = self._record.read()
        return None if content is None else UploadProgress.parse(content, self.url)

    def wait(self) -> UploadProgress | None:
        """Reads the claim once its holder counts as dead, at once if it has ended in order.

        Raises:
            CavmaeError: the holder is alive, or the content is damaged.
        """
        progress = self.read()
        holder = progress.holder if progress is not None else None
        if progress is None or holder is None or holder.is_alive is False:
            return progress
        log.info(
            "%s is held by process %d of %s: waiting %.0f s to see whether it is alive.",
            self.url, holder.pid, holder.host, LEASE_SECONDS,
        )  # fmt: skip
        seen = self._record.read()
        until = time.monotonic() + LEASE_SECONDS
        while time.monotonic() < until:
            time.sleep(LEASE_SECONDS / POLLS)
            if self._record.read() != seen:
                raise CavmaeError(
                    f"Process {holder.pid} of {holder.host} is writing this data set or part, as "
                    f"{self.url} shows: wait for it to end."
                )
        return None if seen is None else UploadProgress.parse(seen, self.url)

    def hold(self, progress: UploadProgress) -> None:
        """Takes the claim, and keeps it alive from then on.

        Args:
            progress: new content; the claim has to be as it was read last.

        Raises:
            RecordChanged: another process was faster.
            CavmaeError: the store cannot be written.
        """
        self._write(dataclasses.replace(progress, holder=Holder.this()))
        threading.Thread(target=self._keep_alive, daemon=True).start()

    def update(self, progress: UploadProgress) -> None:
        """Records uploads. Raises as :meth:`check`."""
        self._checked(dataclasses.replace(progress, holder=Holder.this()))

    def check(self) -> None:
        """Confirms the claim, if there is one, before an upload.

        Raises:
            CavmaeError: another run has it, or the store cannot be written.
            Stopped: the claim is given back.
        """
        if self._progress is not None:
            self._checked(None)

    def _checked(self, progress: UploadProgress | None) -> None:
        """Writes new content, or the old one again; raises as :meth:`check`."""
        if self._lost is not None:
            raise self._lost
        try:
            self._write(progress)
        except RecordChanged as error:
            self._lost = CavmaeError(
                f"Another run of this data set or part has taken over {self.url}, so this one "
                "ends; what it has uploaded is used: keep one of the runs."
            )
            raise self._lost from error

    def _write(self, progress: UploadProgress | None) -> None:
        with self._lock:
            progress = progress or self._progress
            if progress is None:  # removed meanwhile
                raise Stopped
            self._beat += 1
            self._record.write(progress.to_bytes(self._beat), self._stop)
            self._progress, self._written = progress, time.monotonic()

    def _keep_alive(self) -> None:
        """Main loop of the thread that shows the other machines that this one works."""
        interval = LEASE_SECONDS / BEATS
        while not self._stop.wait(max(0.01, self._written + interval - time.monotonic())):
            try:
                self.check()
            except Stopped:
                return
            except StoreError as error:  # it may come back
                log.warning("%s", error)
                self._stop.wait(interval)
            except CavmaeError as error:
                self._on_failure(error)
                return

    def release(self) -> None:
        """Gives the claim back with what is uploaded, for the next run to go on at once."""
        self._stop.set()
        if self._progress is None or self._lost is not None:
            return
        with contextlib.suppress(Stopped, StoreError), self._lock:  # the next run waits longer
            released = dataclasses.replace(self._progress, holder=None)
            self._record.write(released.to_bytes(0), self._stop)  # a single attempt
        self._progress = None

    def end(self) -> None:
        """Removes the claim on a complete data set. Raises as :meth:`check`."""
        self.check()
        self._stop.set()
        with self._lock:
            self._record.remove()
            self._progress = None
