"""Uploads of a data set to an object store while it is built in a folder of this machine.

A thread uploads each sealed shard, and removes it here once the store has it; ``manifest.json``
comes last, so that a reader of the store sees no manifest whose shards are not there. A rerun
continues from the record of the uploads, and uploads nothing that the store has.
"""

import collections
import logging
import re
import tempfile
import threading
from collections.abc import Iterable
from pathlib import Path

from cavmae.common.errors import CavmaeError
from cavmae.common.stores import NameTaken, Stopped, Store
from cavmae.datasets.format.manifest import NAME, Manifest, ShardEntry
from cavmae.datasets.sharding.job_state import (
    ARRAY,
    SHARES,
    InputLayout,
    State,
    merge_parts,
    read_lines,
)
from cavmae.datasets.sharding.upload_record import ELSEWHERE, Content, UploadRecord

log = logging.getLogger("cavmae")
WAITING = 2  # sealed shards on disk besides that on its way; more hold up the extraction
STOP_SECONDS = 10.0  # for the part on its way, when the run is interrupted
# Files of data sets of this program.
_OURS = re.compile(
    r"(?:manifest|skipped|inputs|uploads|clips)(?:-part-(?P<number>\d+)-of-(?P<parts>\d+))?"
    r"(?:\.jsonl?|-\d{6,}\.tar)"
)


class Uploads:
    """Uploads of a data set, or of one part of N of it.

    Only one process at a time works with a folder's uploads: that with the folder's lock.

    Args:
        layout: of the local folder.
        store: that receives the files.

    Raises:
        CavmaeError: see :class:`UploadRecord`.
    """

    def __init__(self, layout: InputLayout, store: Store):
        self._layout, self.store = layout, store
        self._record = UploadRecord(layout, store.url)
        self._sizes: dict[str, int] = {}
        self._queue: collections.deque[ShardEntry] = collections.deque()
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._ending = False
        # Not Thread.join and is_alive: in Python 3.11 a join that a signal interrupts marks a
        # running thread as ended.
        self._ended = False
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._work, daemon=True)

    def start(self, state: State, planned: bool) -> None:
        """Compares folder, record and store, and begins to upload what the store lacks.

        Args:
            state: of the job; its shards are here or at the store.
            planned: inputs were planned in this folder before.

        Raises:
            CavmaeError: the store has files of another data set, or lacks shards that it had; or
                the folder was not made for it.
        """
        self._sizes = self.store.sizes()
        if not self._record.exists and planned:
            raise CavmaeError(
                f"{self._layout.folder} holds a data set that was not created for "
                f"{self.store.url}: choose another --local-folder."
            )
        own = self._record.begun.keys()
        refuse_other_sets(self.store, self._sizes.keys() - own, self._layout.part)
        self._record.open()
        for name in self._record.unfinished:
            # A kill came before the record of the end. Other files than shards are replaced, so
            # that their size proves nothing.
            if name.endswith(".tar") and self._sizes.get(name) == self._record.begun[name].bytes:
                self._record.finish(name)
        self.store.abort_uploads(self._record.unfinished)
        pending = [shard for shard in state.shards if not self._is_stored(shard)]
        self._thread.start()
        for shard in pending:
            self.add(shard)

    def _is_stored(self, shard: ShardEntry) -> bool:
        """Whether the store has a shard; if so, no copy of it stays here.

        Raises:
            CavmaeError: neither the store nor the folder has it.
        """
        path = self._layout.folder / shard.file
        stored = self._record.is_done(shard.file, Content(shard.bytes, shard.sha256))
        if stored and self._sizes.get(shard.file) == shard.bytes:
            path.unlink(missing_ok=True)
            return True
        if not path.exists() or path.stat().st_size != shard.bytes:
            place = self.store.address(shard.file) if stored else path
            raise CavmaeError(
                f"Shard {place} is missing or altered: copy it back, or create the data set anew: "
                f"{ELSEWHERE}."
            )
        return False

    def add(self, shard: ShardEntry) -> None:
        """Takes a sealed shard, which stays in the folder until the store has it."""
        with self._changed:
            self._queue.append(shard)
            self._changed.notify_all()

    def has_room(self, wait: bool = False) -> bool:
        """Whether another shard may be sealed.

        Args:
            wait: until there is room.

        Raises:
            CavmaeError: an upload failed.
        """
        with self._changed:
            while True:
                if self._failure is not None:
                    raise self._failure
                if len(self._queue) <= WAITING:  # the first is on its way
                    return True
                if not wait:
                    return False
                self._changed.wait()

    def _work(self) -> None:
        """Main loop of the thread."""
        failure: BaseException | None = None
        try:
            while (shard := self._next()) is not None:
                path = self._layout.folder / shard.file
                self._send(path, Content(shard.bytes, shard.sha256))
                path.unlink()
                with self._changed:
                    self._queue.popleft()
                    self._changed.notify_all()
        except Stopped:
            pass
        except BaseException as error:  # noqa: BLE001 - raised where the run waits
            failure = error
        with self._changed:
            self._failure, self._ended = failure, True
            self._changed.notify_all()

    def _next(self) -> ShardEntry | None:
        """Waits for a shard to upload, which stays in the queue meanwhile; None: all are done."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._ending)
            return self._queue[0] if self._queue and not self._stop.is_set() else None

    def _send(self, path: Path, content: Content, new: bool = False) -> None:
        """Uploads a file unless the store has it. Raises CavmaeError, as :meth:`_upload` does."""
        stored = self._sizes.get(path.name) == content.bytes
        if not stored or not self._record.is_done(path.name, content):
            self._upload(path, content, new)

    def _upload(self, path: Path, content: Content, new: bool = False) -> None:
        """Uploads a file.

        Raises:
            CavmaeError: the upload failed, or ``new`` and the store has a file of this name, unless
                an earlier run had begun it, with this content.
        """
        name = path.name
        if name.endswith(".tar") and self._record.begun.get(name, content) != content:
            raise CavmaeError(
                f"{self.store.address(name)} was uploaded with other content: {ELSEWHERE}."
            )
        begun = name in self._record.begun
        self._record.begin(name, content)
        try:
            self.store.upload(path, name, self._stop, new)
        except NameTaken as error:
            if not begun:  # equal content proves nothing: another machine may plan the same
                self._record.forget(name)
            if not begun or not self.store.holds(path, name):
                raise _foreign(self.store, name) from error
        self._record.finish(name)
        self._sizes[name] = content.bytes

    def publish_plan(self) -> None:
        """Uploads the plan, which reserves the place and shows early that it can be written.

        Raises:
            CavmaeError: it cannot, or another data set was begun there meanwhile.
        """
        plan = self._layout.plan
        if plan.exists():  # a part may have no inputs
            self._send(plan, Content.of(plan), new=plan.name not in self._sizes)

    def publish(self) -> None:
        """Uploads the shards that are left, then ``skipped.jsonl``, then ``manifest.json``.

        Raises:
            CavmaeError: an upload failed.
        """
        with self._changed:
            self._ending = True
            self._changed.notify_all()
            if self._queue:
                log.info("%d shards are left to upload to %s.", len(self._queue), self.store.url)
            self._changed.wait_for(lambda: self._ended)
        if self._failure is not None:
            raise self._failure
        for path in (self._layout.skipped, self._layout.manifest):
            self._send(path, Content.of(path))

    def publish_whole(self, parts: int) -> Manifest | None:
        """Joins the parts at the store once it has all inputs of each.

        As in :func:`merge_parts`, the parts are read again until the store has what they join to.

        Args:
            parts: their number.

        Returns:
            The whole data set's manifest; None while a part is not complete.

        Raises:
            CavmaeError: the store cannot be read or written, or the parts have other settings.
        """
        while True:
            with tempfile.TemporaryDirectory(dir=self._layout.folder, prefix=".parts-") as folder:
                joined = InputLayout(Path(folder))
                whole = self._fetch_whole(joined.folder, parts)
                paths = [joined.skipped, joined.manifest] if whole is not None else []
                old = [path for path in paths if not self.store.holds(path, path.name)]
                if not old:
                    return whole
                for path in old:  # whatever is on record: another machine may have replaced it
                    self._upload(path, Content.of(path))

    def _fetch_whole(self, folder: Path, parts: int) -> Manifest | None:
        """Fetches the parts' files into a folder, and joins them there."""
        layouts = [InputLayout(folder, part=(i + 1, parts)) for i in range(parts)]
        names = self.store.sizes()
        if not all(layout.manifest.name in names for layout in layouts):
            return None
        for layout in layouts:
            for path in (layout.plan, layout.skipped, layout.manifest):
                self.store.fetch(path.name, path)
        return merge_parts(folder, parts, self.store.url)

    def close(self) -> None:
        """Ends the thread; an upload on its way is aborted, and repeated by the next run."""
        if self._thread.ident is None:  # never started
            return
        with self._changed:
            self._ending = True
            self._stop.set()
            self._changed.notify_all()
            ended = self._changed.wait_for(lambda: self._ended, STOP_SECONDS)
        if not ended:
            self.store.abort_uploads(self._record.unfinished)


def check_place(layout: InputLayout, store: Store) -> None:
    """Refuses a place with another data set, before anything is written there.

    Raises:
        CavmaeError: see :func:`refuse_other_sets`; or the store cannot be read.
    """
    own = UploadRecord(layout, store.url).begun.keys()
    refuse_other_sets(store, store.sizes().keys() - own, layout.part)


def refuse_other_sets(store: Store, names: Iterable[str], part: tuple[int, int] | None) -> None:
    """Refuses a place with another data set, of which nothing may be overwritten.

    Args:
        store: the place.
        names: of its files that this job did not upload.
        part: (I, N) if this job writes part I of N; (0, 0): one of them.

    Raises:
        CavmaeError: files of another data set are there.
    """
    names = sorted(names)
    joined = part is not None and any(name.startswith("manifest-part-") for name in names)
    for name in names:
        match = _OURS.fullmatch(name)
        if match is None:
            foreign = name.endswith(".tar") or (part is None and name in (ARRAY, SHARES))
        elif part is None or match["parts"] is None:
            foreign = not (joined and name in (NAME, "skipped.jsonl"))
        else:
            foreign = int(match["parts"]) != part[1] > 0 or int(match["number"]) == part[0]
        if foreign:
            raise _foreign(store, name)


def _foreign(store: Store, name: str) -> CavmaeError:
    return CavmaeError(
        f"{store.address(name)} was not uploaded from this --local-folder, so another data set is "
        "there: choose another --out, or give the --local-folder of its first run."
    )


def refuse_local_folder(folder: Path) -> None:
    """Refuses a folder from which shards go to a store as the data set itself.

    Raises:
        CavmaeError: it is one.
    """
    for path in sorted(folder.glob("uploads*.jsonl")):
        url = next((record.get("store") for record in read_lines(path)), "a store")
        raise CavmaeError(
            f"{folder} is the local folder of {url}: give --out {url} --local-folder {folder}."
        )
