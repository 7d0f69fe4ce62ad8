"""Uploads of a data set to an object store while it is built in a folder of this machine.

A thread uploads each sealed shard, and removes it here once the store has it; ``manifest.json``
comes last, so that a reader of the store sees no manifest whose shards are not there. A rerun
continues from the record of the uploads, and uploads nothing that the store has. With another local
folder it continues from the record at the store (:mod:`cavmae.datasets.sharding.takeover`).
"""

import collections
import contextlib
import dataclasses
import logging
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

from cavmae.common.errors import CavmaeError
from cavmae.common.store_records import RecordChanged
from cavmae.common.stores import NameTaken, Stopped, Store
from cavmae.datasets.format.manifest import Manifest, ShardEntry
from cavmae.datasets.sharding.inputs import Input
from cavmae.datasets.sharding.job_state import (
    InputLayout,
    State,
    check_settings,
    count_lines,
    merge_parts,
)
from cavmae.datasets.sharding.takeover import (
    adopt_manifest,
    adopt_progress,
    belongs,
    check_place,
)
from cavmae.datasets.sharding.upload_claim import Claim, UploadProgress
from cavmae.datasets.sharding.upload_record import ELSEWHERE, Content, UploadRecord, store_of

log = logging.getLogger("cavmae")
WAITING = 2  # sealed shards on disk besides that on its way; more hold up the extraction
STOP_SECONDS = 10.0  # for the part on its way, when the run is interrupted


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
        self._claim = Claim(store, layout.progress, self._fail)
        self._taken_over = False
        self._planned = 0
        self._pending: list[ShardEntry] = []
        # Shards to upload, with the state of the job at their end where it is known.
        self._queue: collections.deque[tuple[ShardEntry, State | None]] = collections.deque()
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._ending = False
        # Not Thread.join and is_alive: in Python 3.11 a join that a signal interrupts marks a
        # running thread as ended.
        self._ended = False
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._work, daemon=True)

    def take_up(self, items: Sequence[Input], settings: dict[str, object]) -> None:
        """Claims an unfinished data set at the store, and fetches what this folder lacks of it.

        Args:
            items: inputs of this run.
            settings: of the samples.

        Raises:
            CavmaeError: the store has another data set, or another run works on this one; or the
                folder was not made for the store.
        """
        if not self._record.exists and count_lines(self._layout.plan):
            raise CavmaeError(
                f"{self._layout.folder} holds a data set that was not created for "
                f"{self.store.url}: choose another --local-folder."
            )
        check_place(self._layout, self.store)
        while not self._claim_unfinished(items, settings):
            # Listed after the claim was read: another run may begin or end at any time.
            self._sizes = check_place(self._layout, self.store)
            if self._layout.progress not in self._sizes:
                if self._layout.manifest.name in self._sizes:
                    adopt_manifest(self._layout, self.store, self._record, items, settings)
                self._record.open()
                return
        self._sizes = self.store.sizes()

    def _claim_unfinished(self, items: Sequence[Input], settings: dict[str, object]) -> bool:
        """Takes the claim on an unfinished data set; False: there was none."""
        while (progress := self._claim.read()) is not None:
            if progress.owner != self._record.owner:
                check_settings(self._claim.url, progress.state.settings, settings)
                progress = self._claim.wait()
                if progress is None:
                    continue
                adopt_progress(self._layout, self.store, self._record, progress, items)
                progress = dataclasses.replace(progress, owner=self._record.owner)
                self._taken_over = True
            self._record.open()
            with contextlib.suppress(RecordChanged):  # it is read again
                self._claim.hold(progress)
                return True
        return False

    def start(self, state: State) -> None:
        """Compares folder, record and store, and begins to upload what the store lacks.

        Args:
            state: of the job, which it changes from now on; its shards are here or at the store.

        Raises:
            CavmaeError: the store lacks shards that it had.
        """
        self._state = state
        for name in self._record.unfinished:
            # A kill came before the record of the end. Other files than shards are replaced.
            path = self._layout.folder / name
            if name.endswith(".tar") and path.exists() and self._is_sent(path):
                self._record.finish(name)
        if self._taken_over:
            self.store.abort_uploads(lambda name: belongs(name, self._layout.part))
        else:
            self._abort()
        self._pending = [shard for shard in state.shards if not self._is_stored(shard)]

    def _is_sent(self, path: Path) -> bool:
        same_size = self._sizes.get(path.name) == path.stat().st_size
        return same_size and self.store.holds(path, path.name)

    def _abort(self) -> None:
        """Aborts multipart uploads that this folder began."""
        if names := {*self._record.unfinished}:
            self.store.abort_uploads(names.__contains__)

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

    def add(self, shard: ShardEntry, last: bool = True) -> None:
        """Takes a sealed shard, which stays in the folder until the store has it.

        Args:
            shard: its entry.
            last: the job's state is that at the end of this shard.
        """
        state = self._snapshot() if last else None
        with self._changed:
            self._queue.append((shard, state))
            self._changed.notify_all()

    def _snapshot(self) -> State:
        state = self._state
        return dataclasses.replace(state, shards=[*state.shards], labels=[*state.labels])

    def _report(self, state: State) -> None:
        """Records at the store that it has the shards of a state."""
        self._claim.update(self._progress_of(state))

    def _progress_of(self, state: State) -> UploadProgress:
        skipped = b""
        if state.skipped_bytes:
            with self._layout.skipped.open("rb") as file:
                skipped = file.read(state.skipped_bytes)
        return UploadProgress(self._record.owner, self._planned, state, skipped.decode())

    def _fail(self, error: BaseException) -> None:
        """Ends the run, which waits or asks for room, by the error of a thread."""
        with self._changed:
            self._failure = self._failure or error
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
        try:
            while (following := self._next()) is not None:
                shard, state = following
                path = self._layout.folder / shard.file
                self._send(path, Content(shard.bytes, shard.sha256))
                if state is not None:
                    self._report(state)
                path.unlink()
                with self._changed:
                    self._queue.popleft()
                    self._changed.notify_all()
        except Stopped:
            pass
        except BaseException as error:  # noqa: BLE001 - raised where the run waits
            self._fail(error)
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _next(self) -> tuple[ShardEntry, State | None] | None:
        """Waits for a shard to upload, which stays in the queue meanwhile; None: all are done."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._ending)
            return self._queue[0] if self._queue and not self._stop.is_set() else None

    def _send(self, path: Path, content: Content) -> None:
        """Uploads a file unless the store has it. Raises CavmaeError, as :meth:`_upload` does."""
        stored = self._sizes.get(path.name) == content.bytes
        if not stored or not self._record.is_done(path.name, content):
            self._upload(path, content)

    def _upload(self, path: Path, content: Content) -> None:
        """Uploads a file.

        Raises:
            CavmaeError: the upload failed, or another run has the claim on the data set.
        """
        name = path.name
        shard = name.endswith(".tar")
        if shard and self._record.begun.get(name, content) != content:
            raise CavmaeError(
                f"{self.store.address(name)} was uploaded with other content: {ELSEWHERE}."
            )
        self._claim.check()
        self._record.begin(name, content)
        try:
            self.store.upload(path, name, self._stop, new=shard)
        except NameTaken:
            # Sent by the run that lost the claim, perhaps after that; a shard is created once, so
            # that nothing of that run can replace this one.
            if not self.store.holds(path, name):
                self._claim.check()
                self.store.upload(path, name, self._stop)
        self._record.finish(name)
        self._sizes[name] = content.bytes

    def publish_plan(self, planned: int, complete: bool) -> None:
        """Claims the place and uploads the plan, which shows early that it can be written.

        Args:
            planned: number of inputs.
            complete: all of them are in shards, and the manifest is written.

        Raises:
            CavmaeError: it cannot, or another run began meanwhile.
        """
        self._planned = planned
        if not self._claim.held and (self._pending or not complete):
            self._claim_place()
        plan = self._layout.plan
        if plan.exists():  # a part may have no inputs
            self._send(plan, Content.of(plan))
        if not self._pending and self._claim.held:
            self._report(self._snapshot())
        self._thread.start()
        for shard in self._pending:
            self.add(shard, last=shard is self._pending[-1])

    def _claim_place(self) -> None:
        # Where shards are still to be sent, the state at the end of the last one sent is not known.
        state = State(self._state.settings) if self._pending else self._snapshot()
        begun = CavmaeError(
            f"Another run of the same data set or part began at {self.store.url} at the same time: "
            "wait for it to end, then run this command again."
        )
        try:
            self._claim.hold(self._progress_of(state))
        except RecordChanged as error:
            raise begun from error
        # The other run may have ended since the place was listed.
        names = self.store.sizes().keys() - self._sizes.keys() - {self._layout.progress}
        if any(belongs(name, self._layout.part) for name in names):
            self._claim.end()
            raise begun

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
        if self._claim.held:
            self._report(self._snapshot())
        for path in (self._layout.skipped, self._layout.manifest):
            self._send(path, Content.of(path))

    def end(self) -> None:
        """Gives the claim on the complete data set back. Raises CavmaeError."""
        if self._claim.held:
            self._claim.end()

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
        self._stop.set()
        ended = True
        if self._thread.ident is not None:
            with self._changed:
                self._ending = True
                self._changed.notify_all()
                ended = self._changed.wait_for(lambda: self._ended, STOP_SECONDS)
        if not ended:
            self._abort()
        self._claim.release()


def refuse_local_folder(folder: Path) -> None:
    """Refuses a folder from which shards go to a store as the data set itself.

    Raises:
        CavmaeError: it is one.
    """
    if (url := store_of(folder)) is not None:
        raise CavmaeError(
            f"{folder} is the local folder of {url}: give --out {url} --local-folder {folder}."
        )
